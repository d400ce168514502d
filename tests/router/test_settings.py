"""Section [router] of the configuration file, and the command line."""

import sys
from pathlib import Path

import pytest

from cluster_core.errors import SettingsError
from cluster_core.settings_reader import read_section
from router.__main__ import main
from router.settings import RouterSettings


def test_the_defaults_are_valid_and_numbers_are_taken() -> None:
    settings = read_section({"router": {"port": 0, "watch_period_s": 1}}, "router", RouterSettings)
    assert (settings.port, settings.watch_period_s) == (0, 1.0)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("port", -1),
        ("port", 70000),
        ("max_live_requests", 0),
        ("max_attempts", 0),
        ("watch_period_s", 0.0),
        ("queue_timeout_s", float("nan")),
        ("worker_wait_s", float("inf")),
        ("placement", "best"),
        ("placements", "auto"),
        ("host", 1),
    ],
)
def test_what_cannot_work_is_refused_with_the_key(key: str, value: object) -> None:
    with pytest.raises(SettingsError, match=rf"router\.{key}"):
        read_section({"router": {key: value}}, "router", RouterSettings)


def test_a_wrong_file_ends_the_command_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "cluster.toml"
    config.write_text(f'[model]\npath = "{tmp_path}/nothing"\n')
    monkeypatch.setattr(sys, "argv", ["router", str(config)])
    assert main() == 2
    told = capsys.readouterr().err
    assert "nothing" in told
    assert len(told.splitlines()) == 1
