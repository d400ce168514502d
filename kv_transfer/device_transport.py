"""The way between processes whose blocks lie in one GPU's memory (see `kv_transfer.near_transport`).

The receiver copies what has met by one launch (`kv_transfer.device_memory`), `kv_transfer.device_rows.SLICE_BYTES` at a
time. Buffers in host memory do not travel this way.
"""

from functools import partial

from kv_transfer.device_copies import DeviceCopies
from kv_transfer.device_rows import SharedMemory
from kv_transfer.near_transport import NearTransport


def make_device_transport(memory: SharedMemory) -> NearTransport:
    """Return one that is not started yet."""
    return NearTransport("device", memory, partial(DeviceCopies, memory=memory))
