"""Where numba keeps what it has compiled: a folder for each state of the kernels' sources.

By itself numba looks at the file of a function alone to tell whether its machine code is out of date; our kernels call
one another across files. Whoever compiles imports this module first.
"""

import hashlib
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import numba

_HERE = Path(__file__).resolve().parent
_SOURCES = ("*_kernel.py", "row_kernels.py", "vector_*.py", "number_formats.py", "thread_team.py", "code_builder.py")


def use_own_folder() -> None:
    """Let numba keep machine code in a folder named after the sources, beside them or where the user told numba to."""
    settings: Any = numba.config
    digest = hashlib.sha256()
    for path in sorted(path for pattern in _SOURCES for path in _HERE.glob(pattern)):
        digest.update(path.name.encode() + path.read_bytes())
    shelf = Path(settings.CACHE_DIR or _HERE / "__pycache__")
    folder = shelf / f"kernels-{digest.hexdigest()[:16]}"
    if not folder.exists():
        try:
            folder.mkdir(parents=True)
        except OSError:  # installed where this user may not write: numba finds a place of its own
            return
        for old in shelf.glob("kernels-*"):
            if old != folder:
                with suppress(OSError):
                    shutil.rmtree(old)
    settings.CACHE_DIR = str(folder)


use_own_folder()
