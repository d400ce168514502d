"""What style.md asks for and no linter checks."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LONGEST_FILE = 400
VAGUE_NAMES = {"utils", "common", "helpers", "base", "misc", "util", "helper"}
UNSAFE_CALLS = re.compile(
    r"^\s*(import|from)\s+(pickle|cloudpickle|dill|marshal|shelve|joblib)\b|\btorch\.load\(|\byaml\.(load|unsafe_load)\(|"
    r"(?<![\w.])(eval|exec)\(|recv_pyobj",
    re.MULTILINE,
)
# The only other places: a library reads the environment when it is imported or started there.
READS_ENVIRONMENT = {
    "kv_transfer/nixl_transport.py",
    "kv_transfer/ucx_transport.py",
}


def _tracked(*patterns: str) -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *patterns],  # noqa: S607  # git of the PATH
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    return [ROOT / name for name in listed if (ROOT / name).is_file()]


def _own_python() -> list[Path]:
    return [path for path in _tracked("*.py") if not path.is_relative_to(ROOT / "cluster_rpc/v1")]


def _packages() -> list[Path]:
    return [
        path
        for path in _own_python()
        if path.parts[len(ROOT.parts)] not in {"tests", "benchmarks", "examples", "simulation"}
    ]


def test_there_is_something_to_check() -> None:
    assert len(_packages()) > 50


@pytest.mark.parametrize("suffix", ["*.py", "*.proto"])
def test_no_file_is_longer_than_the_wall(suffix: str) -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for path in _tracked(suffix)
        if not path.is_relative_to(ROOT / "cluster_rpc/v1")
        and (lines := len(path.read_text().splitlines())) > LONGEST_FILE
    }
    assert not long, f"split by noun: {long}"


def test_no_file_has_a_name_that_says_nothing() -> None:
    vague = [str(path.relative_to(ROOT)) for path in _own_python() if path.stem in VAGUE_NAMES]
    assert not vague


def test_the_environment_is_read_only_where_a_process_starts() -> None:
    readers = [
        str(path.relative_to(ROOT))
        for path in _packages()
        if path.name != "__main__.py" and re.search(r"\bos\.(environ|getenv|putenv)\b", path.read_text())
    ]
    assert set(readers) <= READS_ENVIRONMENT, "pass the value in from __main__.py"


def test_nothing_parses_code_from_a_wire_or_a_file() -> None:
    unsafe = {
        str(path.relative_to(ROOT)): found.group(0).strip()
        for path in _packages()
        if (found := UNSAFE_CALLS.search(path.read_text()))
    }
    assert not unsafe


def test_every_settings_class_is_a_frozen_dataclass() -> None:
    loose = []
    for path in _packages():
        if path.name != "settings.py":
            continue
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and node.name.endswith("Settings"):
                decorators = " ".join(ast.unparse(decorator) for decorator in node.decorator_list)
                if "frozen=True" not in decorators or "slots=True" not in decorators:
                    loose.append(f"{path.relative_to(ROOT)}: {node.name}")
    assert not loose


def test_package_markers_import_nothing() -> None:
    busy = [
        str(path.relative_to(ROOT))
        for path in _packages()
        if path.name == "__init__.py"
        and any(isinstance(node, ast.Import | ast.ImportFrom) for node in ast.parse(path.read_text()).body)
    ]
    assert not busy


def test_the_proto_folder_is_no_package() -> None:
    assert not list((ROOT / "proto").rglob("*.py"))


@pytest.mark.parametrize(
    "package",
    [
        "router",
        "cluster_core",
        "cluster_rpc",
        "inference_engine",
        "kv_transfer",
        "block_directory",
        "prefill_worker",
        "decode_worker",
        "cluster_launcher",
    ],
)
def test_our_package_names_are_ours(package: str) -> None:
    """Another distribution on the path could own a name as plain as `router`."""
    found = __import__(package).__file__
    assert found is not None
    assert Path(found).is_relative_to(ROOT)


def test_the_data_folders_are_imported_by_nothing() -> None:
    data = ("tests", "benchmarks", "examples", "simulation", "docs", "cluster_configs", "proto")
    pattern = re.compile(rf"^\s*(from|import)\s+({'|'.join(data)})\b", re.MULTILINE)
    importers = [str(path.relative_to(ROOT)) for path in _packages() if pattern.search(path.read_text())]
    assert not importers
