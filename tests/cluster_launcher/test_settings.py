"""The section [cluster], and the page that explains every section."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from block_directory.settings import DirectorySettings
from cluster_core.errors import SettingsError
from cluster_core.settings_reader import SECTIONS, read_section
from cluster_launcher.configuration import load_configuration
from cluster_launcher.settings import ClusterSettings
from decode_worker.settings import DecodeSettings, SpeculationSettings
from inference_engine.settings import EngineSettings, HashModelSettings, ModelSettings
from kv_transfer.settings import TransferSettings
from prefill_worker.settings import PrefillSettings
from router.settings import RouterSettings

CONFIGS = Path(__file__).resolve().parents[2] / "cluster_configs"
KINDS = {
    "cluster": ClusterSettings,
    "model": ModelSettings,
    "hash_model": HashModelSettings,
    "engine": EngineSettings,
    "router": RouterSettings,
    "prefill": PrefillSettings,
    "decode": DecodeSettings,
    "speculation": SpeculationSettings,
    "transfer": TransferSettings,
    "directory": DirectorySettings,
}
ROW = re.compile(r"^\| `(\w+)` \| (.+?) \| .+ \|$", re.MULTILINE)


def _explained() -> dict[str, dict[str, str]]:
    parts = re.split(r"^## \[(\w+)\]$", (CONFIGS / "README.md").read_text(), flags=re.MULTILINE)
    return {name: dict(ROW.findall(body)) for name, body in zip(parts[1::2], parts[2::2], strict=True)}


def test_every_section_is_explained_once() -> None:
    assert tuple(_explained()) == SECTIONS


@pytest.mark.parametrize("section", SECTIONS)
def test_every_key_is_explained_once_with_its_default(section: str) -> None:
    body = (CONFIGS / "README.md").read_text().split(f"## [{section}]")[1].split("\n## ")[0]
    keys = [key for key, _ in ROW.findall(body)]
    fields = dataclasses.fields(KINDS[section])
    assert keys == [field.name for field in fields]
    for field in fields:
        told = _explained()[section][field.name]
        if field.default is dataclasses.MISSING:
            assert told == "required"
        else:
            assert json.loads(told.strip("`")) == field.default


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.name)
def test_every_shipped_configuration_is_accepted(path: Path) -> None:
    assert load_configuration(path).cluster.decode >= 1


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ({"name": "No Spaces"}, "name"),
        ({"prefill": -1}, "prefill"),
        ({"decode": 0}, "decode"),
        ({"decode": 1000}, "decode"),
        ({"gpus_per_worker": -0.5}, "gpus_per_worker"),
        ({"cpus_per_worker": float("nan")}, "cpus_per_worker"),
        ({"start_timeout_s": 0.0}, "start_timeout_s"),
        ({"restart_budget": 0}, "restart_budget"),
        ({"prefill": "one"}, "prefill"),
        ({"prefil": 1}, "prefil"),
    ],
)
def test_a_bad_value_is_refused_by_the_name_of_its_key(section: dict[str, object], key: str) -> None:
    with pytest.raises(SettingsError, match=rf"^cluster\.{key}: ") as refused:
        read_section({"cluster": section}, "cluster", ClusterSettings)
    assert "\n" not in str(refused.value)
