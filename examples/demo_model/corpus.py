"""Collect the running interpreter's standard library as training text.

The order of the files, what is left out and which files are held out depend on the paths alone, so the same Python
version always gives the same corpus. Tests, generated tables and vendored tools are left out: a model this small
would spend its capacity on code page numbers and on `assertEqual`.
"""

import hashlib
import sysconfig
from dataclasses import dataclass
from pathlib import Path

SKIPPED_FOLDERS = frozenset(
    {
        "__pycache__",
        "encodings",
        "idle_test",
        "idlelib",
        "lib2to3",
        "pydoc_data",
        "site-packages",
        "test",
        "tests",
    },
)
SKIPPED_FILES = frozenset({"html/entities.py", "locale.py", "this.py"})
SKIPPED_PREFIXES = ("_sysconfigdata",)
HELD_OUT_ONE_IN = 32
SMALLEST_FILE_CHARS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFile:
    """One cleaned source file; `path` is relative to the library's root, with forward slashes."""

    path: str
    text: str
    held_out: bool


def standard_library() -> Path:
    """Return the folder that holds the interpreter's own pure Python modules."""
    return Path(sysconfig.get_path("stdlib"))


def collect(root: Path) -> list[SourceFile]:
    """Return the library's source files in sorted order, cleaned, without doubles and without the skipped ones."""
    files: list[SourceFile] = []
    seen: set[str] = set()
    for path in sorted(root.rglob("*.py"), key=lambda found: found.relative_to(root).as_posix()):
        name = path.relative_to(root).as_posix()
        if _is_skipped(name):
            continue
        try:
            text = clean(path.read_text(encoding="utf-8"))
        except UnicodeDecodeError:
            continue
        if len(text) < SMALLEST_FILE_CHARS or text in seen:
            continue
        seen.add(text)
        files.append(SourceFile(path=name, text=text, held_out=is_held_out(name)))
    return files


def clean(text: str) -> str:
    """Drop the comment block that opens a file (licence, history) and the spaces that end lines; tabs become spaces."""
    lines = [line.rstrip() for line in text.expandtabs(8).splitlines()]
    first = 0
    while first < len(lines) and (not lines[first] or lines[first].startswith("#")):
        first += 1
    return "\n".join(lines[first:]).rstrip() + "\n"


def is_held_out(name: str) -> bool:
    """Say whether a file is kept for the held-out loss; decided by a hash of its path, so that it never changes."""
    return hashlib.sha256(name.encode()).digest()[0] % HELD_OUT_ONE_IN == 0


def _is_skipped(name: str) -> bool:
    *folders, file_name = name.split("/")
    return (
        not SKIPPED_FOLDERS.isdisjoint(folders)
        or name in SKIPPED_FILES
        or file_name.startswith(SKIPPED_PREFIXES)
        or any(folder.startswith("config-") for folder in folders)
    )
