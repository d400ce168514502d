"""`baton up`, with what it cannot serve: exit code 2, one line that names the cause, nothing left.

Two of the causes are told to a process of its own, as a user would; the others to the command line in this one.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from cluster_launcher.__main__ import main

CHECKOUT = Path(__file__).resolve().parents[2]
DEMO_MODEL = CHECKOUT / "examples" / "demo_model"
MODEL_FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
MARK = "BATON_TEST_OF_REFUSALS"


@pytest.fixture
def temporary() -> Iterator[Path]:
    """Give a folder with a path short enough for Ray's sockets, so that Ray's folder would be made in it."""
    with tempfile.TemporaryDirectory(prefix="up") as folder:
        yield Path(folder)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in MODEL_FILES:
        shutil.copy(DEMO_MODEL / name, folder / name)
    return folder


def _without_tokenizer(model: Path) -> str:
    (model / "tokenizer.json").unlink()
    return ""


def _with_a_corrupt_tokenizer(model: Path) -> str:
    whole = (model / "tokenizer.json").read_text()
    (model / "tokenizer.json").write_text(whole[: len(whole) // 2])
    return ""


def _with_a_broken_chat_template(model: Path) -> str:
    (model / "chat_template.jinja").write_text("{% for message in messages %}{{ message.content }}")
    return ""


def _with_truncated_weights(model: Path) -> str:
    weights = model / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    return ""


def _with_an_unknown_key(_: Path) -> str:
    return "[cluster]\nprefil = 1\n"


def _with_a_draft_model_of_other_tokens(model: Path) -> str:
    other = model.with_name("other")
    shutil.copytree(model, other)
    file = other / "tokenizer.json"
    file.write_text(file.read_text().replace("<|", "<!"))
    return f'[speculation]\nmethod = "draft_model"\ndraft_model = "{other}"\n'


def _with_a_wrong_type(_: Path) -> str:
    return '[engine]\nthreads = "many"\n'


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_without_tokenizer, "tokenizer.json"),
        (_with_a_corrupt_tokenizer, "tokenizer.json"),
        (_with_a_broken_chat_template, "chat_template.jinja"),
        (_with_truncated_weights, "model.safetensors"),
        (_with_an_unknown_key, "cluster.prefil"),
        (_with_a_wrong_type, "engine.threads"),
        (_with_a_draft_model_of_other_tokens, "speculation.draft_model"),
    ],
)
def test_what_cannot_be_served_is_refused(
    spoil: Callable[[Path], str],
    said: str,
    model: Path,
    temporary: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    config, runtime = model.with_name("cluster.toml"), model.with_name("runtime")
    config.write_text(f'[model]\npath = "{model}"\n[router]\nport = 0\n' + spoil(model))
    runtime.mkdir()
    before = psutil.Process().children(recursive=True)
    with monkeypatch.context() as patch:
        patch.setattr(os, "environ", {**os.environ, "XDG_RUNTIME_DIR": str(runtime)})
        patch.setattr(tempfile, "tempdir", str(temporary))
        code = main(["up", str(config)])
    _assert_said(code, capfd.readouterr(), said)
    _assert_nothing_left(runtime, temporary)
    assert psutil.Process().children(recursive=True) == before


def test_an_occupied_port_is_refused(tmp_path: Path, temporary: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        text = f'[model]\npath = "{DEMO_MODEL}"\n[router]\nport = {taken.getsockname()[1]}\n'
        _assert_refused(text, "router.port", tmp_path, temporary)


def test_a_server_that_does_not_answer_is_refused(tmp_path: Path, temporary: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    url = f"redis://127.0.0.1:{port}/0"
    text = f'[model]\npath = "{DEMO_MODEL}"\n[router]\nport = 0\n[directory]\nurl = "{url}"\n'
    _assert_refused(text, "directory.url", tmp_path, temporary)


def _assert_refused(text: str, said: str, folder: Path, temporary: Path) -> None:
    config = folder / "cluster.toml"
    config.write_text(text)
    runtime = folder / "runtime"
    runtime.mkdir()
    mark = str(folder)
    done = subprocess.run(
        [sys.executable, "-m", "cluster_launcher", "up", str(config)],
        cwd=CHECKOUT,
        env={**os.environ, "TMPDIR": str(temporary), "XDG_RUNTIME_DIR": str(runtime), MARK: mark},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    _assert_said(done.returncode, (done.stdout, done.stderr), said)
    _assert_nothing_left(runtime, temporary)
    assert not [process.pid for process in psutil.process_iter() if _has_mark(process, mark)]


def _assert_said(code: int, output: tuple[str, str], said: str) -> None:
    told, refusal = output
    assert code == 2, refusal
    assert not told
    assert refusal.count("\n") == 1, refusal
    assert refusal.endswith("\n")
    assert said in refusal


def _assert_nothing_left(runtime: Path, temporary: Path) -> None:
    assert not list(runtime.rglob("*.json"))
    assert not list(temporary.glob("baton-*"))


def _has_mark(process: psutil.Process, mark: str) -> bool:
    """Whether the process inherited our variable: children that outlive their parent still have it."""
    with contextlib.suppress(psutil.Error):
        return process.environ().get(MARK) == mark
    return False
