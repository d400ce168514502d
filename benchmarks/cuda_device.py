"""Whether there is a GPU to measure on."""

import sys

import torch


def require_device() -> None:
    """End the program, with one line that says why, where there is no CUDA device."""
    if not torch.cuda.is_available():
        kind = "a build for CPUs" if torch.version.cuda is None else f"built for CUDA {torch.version.cuda}"
        sys.stderr.write(
            f"--device cuda: torch {torch.__version__}, {kind}, sees no CUDA device; nothing was measured\n"
        )
        raise SystemExit(2)
