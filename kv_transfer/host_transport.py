"""The way between processes of one machine whose blocks lie in host memory (see `kv_transfer.near_transport`).

The receiver reads the sender's memory by a system call: a few rows at once, by the very call that heard of them, more
as `kv_transfer.host_copies` tells. Small lots travel in the packet itself.

UCX's own way (CMA) makes the same system call for each block by itself, and a dozen Python objects around it: that is
what `docs/decisions/lots-on-one-host.md` is about. Memory of a GPU cannot be read so.
"""

from cluster_core.errors import PartUnavailable
from kv_transfer.host_copies import HostCopies
from kv_transfer.near_transport import NearTransport
from kv_transfer.process_memory import ProcessReader, reading_works


def make_host_transport() -> NearTransport:
    """Return one that is not started yet."""
    return NearTransport("host", HostMemory(), HostCopies)


class HostMemory:
    """See `kv_transfer.near_copies.NearMemory`. All of a process's memory can be read: there is nothing to describe."""

    def start(self) -> bytes:
        """Return nothing: what machine, user and namespaces have in common will do."""
        if not reading_works():
            message = "transport host: the kernel does not let one process read another (process_vm_readv)"
            raise PartUnavailable(message)
        return b""

    def describe(self, _address: int) -> bytes:
        """Return nothing."""
        return b""

    def reader(self, pid: int) -> ProcessReader:
        """Return what reads process ``pid``."""
        return ProcessReader(pid)

    def learn(self, _reader: ProcessReader, _description: bytes) -> None:
        """Pass over what no sender of this kind says."""
