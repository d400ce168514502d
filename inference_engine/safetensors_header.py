"""The header of a safetensors file, read and checked without reading the tensors.

A file is 8 bytes (little-endian length of the header), the header (JSON: name -> dtype, shape, data_offsets) and the
tensors' bytes without gaps. A download that was cut short shows here, before gigabytes are mapped.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster_core.errors import ModelFolderError

ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""Tensor types that can be served; weights of other types are refused."""

_LENGTH_BYTES = 8
_LARGEST_HEADER = 100_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class SafetensorsHeader:
    """What one weight file says of itself."""

    shapes: dict[str, tuple[int, ...]]
    text: bytes
    file_bytes: int
    data_start: int


def read_header(path: Path) -> SafetensorsHeader:
    """Read and check the header. Raises `ModelFolderError` for a file that is missing, cut short or inconsistent."""
    try:
        file_bytes = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            if file_bytes < _LENGTH_BYTES or length > min(file_bytes - _LENGTH_BYTES, _LARGEST_HEADER):
                raise _broken(path, f"it has {file_bytes} bytes and announces a header of {length}")
            text = file.read(length)
    except OSError as error:
        message = f"{path}: cannot be read ({error.strerror}); download it again"
        raise ModelFolderError(message) from error
    try:
        entries = json.loads(text)
        if not isinstance(entries, dict):
            raise _broken(path, "its header is not a JSON object")
        entries.pop("__metadata__", None)
        spans = {name: _span(path, name, entry) for name, entry in entries.items()}
    except (ValueError, TypeError, KeyError) as error:
        raise _broken(path, "its header cannot be understood") from error
    data_start = _LENGTH_BYTES + length
    end = 0
    for start, stop in sorted(spans.values()):
        if start != end:
            raise _broken(path, f"its tensors leave a gap or overlap at byte {data_start + end}")
        end = stop
    if data_start + end != file_bytes:
        raise _broken(path, f"it has {file_bytes} bytes where its header announces {data_start + end}")
    shapes = {name: tuple(entry["shape"]) for name, entry in entries.items()}
    return SafetensorsHeader(shapes=shapes, text=text, file_bytes=file_bytes, data_start=data_start)


def _span(path: Path, name: str, entry: Any) -> tuple[int, int]:
    """Return where the tensor starts and ends in the data, checked against its shape and type."""
    start, stop = entry["data_offsets"]
    if entry["dtype"] not in ITEM_BYTES:
        message = f"{path}: tensor {name} is of type {entry['dtype']}; served are {', '.join(ITEM_BYTES)}"
        raise ModelFolderError(message)
    sizes = [*entry["shape"], start, stop]
    if any(type(size) is not int or size < 0 for size in sizes):
        raise _broken(path, f"the shape or place of tensor {name} is not made of whole numbers")
    if stop - start != math.prod(entry["shape"]) * ITEM_BYTES[entry["dtype"]]:
        raise _broken(path, f"tensor {name} has {stop - start} bytes, which is not what its shape takes")
    return start, stop


def _broken(path: Path, why: str) -> ModelFolderError:
    return ModelFolderError(f"{path}: truncated or damaged: {why}; download it again")
