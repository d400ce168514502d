"""The deployment files by Ray's own schema and by our own rules; nothing is started."""

import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

from cluster_launcher.configuration import configuration_of
from tests.deploy.cluster_files import FOLDER, RAY_UP_FILES, read_kuberay, read_yaml

OPEN_TO_STRANGERS = ("6379", "8265", "10001")
"""Ray's control port, dashboard and client: none of them may be opened, whoever reaches them can run code."""
ROLES = {"baton_prefill", "baton_decode"}


def commands(document: dict[str, Any]) -> list[str]:
    keys = ("initialization_commands", "setup_commands", "head_start_ray_commands", "worker_start_ray_commands")
    return [command for key in keys for command in document.get(key, [])]


@pytest.mark.parametrize("name", RAY_UP_FILES)
def test_ray_accepts_the_file(name: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config  # noqa: PLC0415 - slow to import

    document = prepare_config(read_yaml(name))
    validate_config(document)
    assert document["head_node_type"] in document["available_node_types"]


@pytest.mark.parametrize("name", RAY_UP_FILES)
def test_ray_is_started_by_our_script_alone_and_other_rays_live_on(name: str) -> None:
    document = read_yaml(name)
    starting = document["head_start_ray_commands"] + document["worker_start_ray_commands"]
    assert [command.rpartition("/")[2] for command in starting] == [
        "node.sh stop",
        "node.sh head",
        "node.sh stop",
        "node.sh worker $RAY_HEAD_IP",
    ]
    assert not any("ray stop" in command for command in commands(document))
    assert document["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"  # noqa: S105 - a path
    assert document["file_mounts"]["~/baton"] == "."


@pytest.mark.parametrize("name", ["aws.yaml", "gcp.yaml"])
def test_every_machine_with_cards_takes_either_role(name: str) -> None:
    types = read_yaml(name)["available_node_types"]
    assert types["head"]["resources"]["baton_prefill"] == types["head"]["resources"]["baton_decode"] == 0
    assert types["gpu"]["resources"]["baton_prefill"] == types["gpu"]["resources"]["baton_decode"] == 8


def test_the_clouds_open_no_port_of_ray() -> None:
    assert read_yaml("aws.yaml")["provider"]["security_group"]["IpPermissions"] == []
    for name in ("aws.yaml", "gcp.yaml"):
        text = (FOLDER / name).read_text(encoding="utf-8")
        assert not any(port in text for port in OPEN_TO_STRANGERS)


def test_efa_is_asked_for() -> None:
    interfaces = read_yaml("aws.yaml")["available_node_types"]["gpu"]["node_config"]["NetworkInterfaces"]
    assert [each["NetworkCardIndex"] for each in interfaces] == [0, 1, 2, 3]
    assert {each["InterfaceType"] for each in interfaces} == {"efa"}


def test_ray_understands_the_kuberay_cluster() -> None:
    from ray.autoscaler._private.kuberay.autoscaling_config import (  # noqa: PLC0415 - slow to import
        _derive_autoscaling_config_from_ray_cr,
    )
    from ray.autoscaler._private.util import prepare_config, validate_config  # noqa: PLC0415 - slow to import

    _, cluster = read_kuberay()
    cluster["metadata"]["namespace"] = "default"
    derived = _derive_autoscaling_config_from_ray_cr(cluster)
    validate_config(prepare_config(derived))
    types = derived["available_node_types"]
    assert types["gpu"]["resources"].items() >= {"baton_prefill": 8, "baton_decode": 8, "GPU": 8}.items()
    assert not ROLES & types["headgroup"]["resources"].keys()


def test_the_kuberay_cluster_asks_for_a_token_and_runs_baton_on_its_head() -> None:
    _, cluster = read_kuberay()
    assert (cluster["apiVersion"], cluster["kind"]) == ("ray.io/v1", "RayCluster")
    assert cluster["spec"]["authOptions"] == {"mode": "token"}
    head = cluster["spec"]["headGroupSpec"]["template"]
    assert head["metadata"]["annotations"]["ray.io/overwrite-container-cmd"] == "true"
    script = head["spec"]["containers"][0]["args"][0]
    assert "$KUBERAY_GEN_RAY_START_CMD" in script
    assert "exec baton up /etc/baton/cluster.toml" in script


def test_both_configurations_are_ones_that_baton_takes() -> None:
    configuration, _ = read_kuberay()
    texts = [configuration["data"]["cluster.toml"], (FOLDER / "cluster.toml").read_text(encoding="utf-8")]
    for text in texts:
        read = configuration_of(tomllib.loads(text), FOLDER / "cluster.toml")
        assert read.cluster.ray_address == "auto"
        assert read.directory.listen_host == "auto"
        assert read.prefill.host == read.decode.host == "auto"
        assert read.router.host == "127.0.0.1"


def test_the_script_is_sound_and_says_how_it_is_used() -> None:
    shell = shutil.which("bash")
    assert shell is not None
    script = FOLDER / "node.sh"
    subprocess.run([shell, "-n", script], check=True)
    said = subprocess.run([script], capture_output=True, text=True, check=False, env={"HOME": "/nonexistent/x"})
    assert said.returncode != 0


def test_stopping_ends_what_was_started_here_and_nobody_else(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    environment = {"HOME": str(tmp_path), "BATON_RUN": str(run), "BATON_BIN": "/nowhere", "PATH": "/usr/bin:/bin"}
    ours, strangers = [subprocess.Popen(["/bin/sleep", "600"], start_new_session=True) for _ in range(2)]
    began = Path(f"/proc/{ours.pid}/stat").read_text(encoding="ascii").split()[21]
    (run / "ray.pid").write_text(f"{ours.pid} {began}\n", encoding="ascii")
    (run / "baton.pid").write_text(f"{strangers.pid} 1\n", encoding="ascii")
    reaped = subprocess.Popen([FOLDER / "node.sh", "stop"], env=environment)
    try:
        assert ours.wait(timeout=30) == -15
        assert reaped.wait(timeout=30) == 0
        assert strangers.poll() is None
        assert list(run.iterdir()) == []
    finally:
        for process in (ours, strangers, reaped):
            process.kill()
            process.wait()
