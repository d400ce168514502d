"""What can be typed, and what a mistake answers: one line, the right exit code, never a stack trace."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from cluster_core.identity import Role
from cluster_launcher.__main__ import main
from cluster_launcher.scale_command import parse_pools

COMMANDS = ("up", "demo", "generate", "status", "scale", "plan", "doctor", "bench")
DEMO_MODEL = Path(__file__).resolve().parents[2] / "examples" / "demo_model"


@pytest.fixture(autouse=True)
def _no_cluster_of_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


def _config(folder: Path, text: str) -> str:
    path = folder / "cluster.toml"
    path.write_text(text)
    return str(path)


def _refusal(capsys: pytest.CaptureFixture[str]) -> str:
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1, printed.err
    return printed.err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_json(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    assert "--json" in capsys.readouterr().out


def test_nothing_typed_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    said = capsys.readouterr().out
    assert all(command in said for command in COMMANDS)
    assert "130" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["fly"], "fly"),
        (["up"], "config"),
        (["up", "/no/such.toml"], "/no/such.toml"),
        (["bench", "weather"], "weather"),
        (["status", "--colour"], "--colour"),
        (["scale", "prefill=one"], "prefill=one"),
        (["scale", "router=2"], "router=2"),
        (["scale", "decode=1", "decode=2"], "decode"),
        (["generate", "x", "--system", "y"], "--chat"),
        (["generate", "x", "--recovery", "hope"], "'recover', 'fail'"),
    ],
)
def test_a_mistake_in_the_command_is_one_line_and_exit_code_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert said in _refusal(capsys)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[modle]\n", "[modle]"),
        ("[cluster]\ndecode = 1\n", "model.path"),
        ('[model]\npath = "nowhere"\n', "nowhere"),
        ('[model]\npath = ""\n', "model.path"),
        (f'[model]\npath = "{DEMO_MODEL}"\n[cluster]\nprefil = 1\n', "cluster.prefil"),
        (f'[model]\npath = "{DEMO_MODEL}"\n[router]\nport = "http"\n', "router.port"),
        (f'[model]\npath = "{DEMO_MODEL}"\n[engine]\ndtype = "int3"\n', "engine.dtype"),
        (f'[model]\npath = "{DEMO_MODEL}"\n[transfer]\ntransport = "pigeon"\n', "transfer.transport"),
        (f'[model]\npath = "{DEMO_MODEL}"\n[router]\nport = 0\n[directory]\nurl = "http://x"\n', "directory.url"),
        ("cluster = 1\n", "cluster"),
        ("[cluster", "TOML"),
    ],
)
def test_a_mistake_in_the_file_is_one_line_that_names_the_key(
    text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["up", _config(tmp_path, text)]) == 2
    assert said in _refusal(capsys)


def test_an_occupied_port_is_found_before_anything_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        config = _config(tmp_path, f'[model]\npath = "{DEMO_MODEL}"\n[router]\nport = {port}\n')
        assert main(["up", config, "--json"]) == 2
    printed = capsys.readouterr()
    assert "router.port" in printed.err
    assert json.loads(printed.out)["exit_code"] == 2


def test_a_directory_url_where_nothing_listens_is_found_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    text = (
        f'[model]\npath = "{DEMO_MODEL}"\n[router]\nport = 0\n[directory]\nurl = "redis://:secret@127.0.0.1:{port}/0"\n'
    )
    assert main(["up", _config(tmp_path, text), "--json"]) == 2
    line = capsys.readouterr().err
    assert "directory.url" in line
    assert "secret" not in line


@pytest.mark.parametrize("arguments", [["status"], ["generate", "x"], ["scale", "decode=1"]])
def test_without_a_cluster_the_exit_code_is_3(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 3
    assert "baton up" in _refusal(capsys)


@pytest.mark.parametrize("arguments", [["status"], ["generate", "x"], ["scale", "decode=1"]])
def test_an_address_where_nothing_answers_is_exit_code_3(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--address", "127.0.0.1:1", "--json"]) == 3
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert answer["kind"] == "ClusterUnreachable"
    assert "127.0.0.1:1" in answer["error"]


def test_pools_are_read_in_any_order() -> None:
    assert parse_pools(["decode=3", "prefill=1"]) == {Role.DECODE: 3, Role.PREFILL: 1}
    assert parse_pools(["decode=3"]) == {Role.DECODE: 3}
