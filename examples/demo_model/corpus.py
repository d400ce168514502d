"""Collect the running interpreter's standard library as training text.

The order of the files, what is left out and which files are held out depend on the paths alone, so the same Python
version always gives the same corpus. Tests, generated tables and vendored tools are left out: a model this small
would spend its capacity on code page numbers and on `assertEqual`.
"""

import ast
import hashlib
import io
import re
import sysconfig
import tokenize
from dataclasses import dataclass
from pathlib import Path

SKIPPED_FOLDERS = frozenset(
    {
        "__pycache__",
        "encodings",
        "idle_test",
        "idlelib",
        "lib2to3",
        "msilib",
        "pydoc_data",
        "site-packages",
        "test",
        "tests",
    },
)
SKIPPED_FILES = frozenset({"html/entities.py", "locale.py", "pickletools.py", "this.py"})
SKIPPED_PREFIXES = ("_sysconfigdata",)
HELD_OUT_ONE_IN = 32
SMALLEST_FILE_CHARS = 200
DOCUMENTED_NODES = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFile:
    """One source file; `path` is relative to the library's root, with forward slashes."""

    path: str
    documented: str
    code: str
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
            documented = path.read_text(encoding="utf-8").expandtabs(8)
            code = code_only(documented)
        except (UnicodeDecodeError, SyntaxError):
            continue
        if len(code) < SMALLEST_FILE_CHARS or code in seen:
            continue
        seen.add(code)
        files.append(SourceFile(path=name, documented=documented, code=code, held_out=is_held_out(name)))
    return files


def code_only(source: str) -> str:
    """Return the source without docstrings, comments and the spaces that end lines.

    A body that was only a docstring becomes `pass`. Raises SyntaxError if the source is not Python.
    """
    lines = source.split("\n")
    removed: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, DOCUMENTED_NODES) or ast.get_docstring(node, clean=False) is None:
            continue
        docstring = node.body[0]
        first, last = docstring.lineno - 1, docstring.end_lineno or docstring.lineno
        if lines[first][: docstring.col_offset].strip():
            continue  # `def f(): "why"` on one line
        removed.update(range(first, last))
        if len(node.body) == 1 and not isinstance(node, ast.Module):
            removed.discard(first)
            lines[first] = " " * docstring.col_offset + "pass"
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        row, column = token.start
        if token.type == tokenize.COMMENT and row - 1 not in removed:
            lines[row - 1] = lines[row - 1][:column]
            if not lines[row - 1].strip():
                removed.add(row - 1)
    kept = "\n".join(line.rstrip() for number, line in enumerate(lines) if number not in removed)
    kept = re.sub(r":\n\n+", ":\n", kept)
    return re.sub(r"\n{4,}", "\n\n\n", kept).strip("\n") + "\n"


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
