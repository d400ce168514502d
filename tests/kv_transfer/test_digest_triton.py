"""The GPU's digests against the library's, in Triton's interpreter where there is no GPU."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xxhash

from cluster_core.blocks import BlockReference
from cluster_core.identity import BlockHash
from cluster_core.layout import KvLayout
from kv_transfer.digest import BlockDigests, DigestMemo, block_digest
from kv_transfer.settings import TransferSettings
from kv_transfer.wire import make_wire
from tests.kv_transfer.fake_pool import FakePool, hashes_of

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported: its kernels then run here, in Python
pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SEEDS = (0, 1, 2**32 - 1, 2**63 + 12345, 2**64 - 1)


def random_rows(size: int, count: int = 6) -> torch.Tensor:
    content = np.random.default_rng(size).integers(0, 256, (count, size), dtype=np.uint8)
    return torch.from_numpy(content).to(DEVICE)


def expected(rows: torch.Tensor, indices: list[int], seeds: list[int]) -> list[bytes]:
    host: Any = rows.cpu().numpy()
    return [xxhash.xxh3_128_digest(host[index].tobytes(), seed) for index, seed in zip(indices, seeds, strict=True)]


# Around every bound of the algorithm: the first length it is for, full stripes, full steps of 1 KiB, steps fetched
# together (16), and what one program sums up (64 KiB).
@pytest.mark.parametrize("size", [248, 256, 320, 1016, 1024, 1032, 2048, 16_384, 17_416, 65_544, 82_176])
def test_every_length_gives_what_the_library_gives(size: int) -> None:
    from kv_transfer.digest_triton import RowDigests  # noqa: PLC0415 - after its interpreter is chosen

    rows, indices, seeds = random_rows(size), [4, 0, 2, 2, 5], list(SEEDS)
    assert RowDigests(rows).of(indices, seeds) == expected(rows, indices, seeds)


@pytest.mark.parametrize("seed", range(2))
def test_random_lengths_and_seeds(seed: int) -> None:
    from kv_transfer.digest_triton import RowDigests  # noqa: PLC0415 - as above

    random = np.random.default_rng(seed)
    rows = random_rows(8 * int(random.integers(31, 700)), count=9)
    indices, seeds = random.integers(0, 9, 7).tolist(), random.integers(0, 2**64, 7, np.uint64).tolist()
    assert RowDigests(rows).of(indices, seeds) == expected(rows, indices, seeds)


@pytest.mark.parametrize("byte", [0, 255])
def test_contents_without_variety(byte: int) -> None:
    from kv_transfer.digest_triton import RowDigests  # noqa: PLC0415 - as above

    rows = torch.full((2, 3000), byte, dtype=torch.uint8, device=DEVICE)
    assert RowDigests(rows).of([1], [byte]) == expected(rows, [1], [byte])


def test_more_blocks_than_there_is_room_for_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from kv_transfer import digest_triton  # noqa: PLC0415 - as above

    monkeypatch.setattr(digest_triton, "_SCRATCH_BYTES", 3 * 2 * 64)
    monkeypatch.setattr(digest_triton, "_MOST_BLOCKS", 7)
    rows, seeds = random_rows(2048, count=12), list(range(12))
    assert digest_triton.RowDigests(rows).of(list(range(12)), seeds) == expected(rows, list(range(12)), seeds)


def test_rows_with_something_between_them() -> None:
    from kv_transfer.digest_triton import RowDigests, suits  # noqa: PLC0415 - as above

    rows = random_rows(1200)[:, 64:1088]
    assert suits(rows)
    assert RowDigests(rows).of([3, 1], [7, 8]) == expected(rows, [3, 1], [7, 8])


def test_rows_that_are_too_short_or_lie_askew_are_not_for_it() -> None:
    from kv_transfer.digest_triton import suits  # noqa: PLC0415 - as above

    assert suits(random_rows(248))
    assert not suits(random_rows(240))
    assert not suits(random_rows(252))
    assert not suits(random_rows(256)[:, 4:252])
    assert not suits(random_rows(260)[:, :256])


class OnDevice(torch.Tensor):
    """A tensor of a GPU, as far as one can tell from outside."""

    __cuda_array_interface__: Any = {}  # noqa: RUF012  # the protocol's name for an attribute


class DevicePool(FakePool):
    """A pool whose blocks a host must not read one by one."""

    @property
    def rows(self) -> Any:
        return torch.from_numpy(self.bytes).as_subclass(OnDevice)

    def buffer(self, index: int) -> Any:
        message = f"block {index} was read by the host"
        raise AssertionError(message)


def references(indices: list[int], generation: int = 5) -> list[BlockReference]:
    names: list[BlockHash | None] = [*hashes_of(16 * (len(indices) - 1)), None]
    return [
        BlockReference(position=position, index=index, generation=generation, hash=name, digest=b"", tokens=16)
        for position, (index, name) in enumerate(zip(indices, names, strict=True))
    ]


@pytest.mark.skipif(DEVICE == "cuda", reason="pretends that a host's memory is a GPU's")
def test_a_gpus_blocks_have_the_digests_that_a_hosts_have() -> None:
    host, blocks = FakePool(8), references([3, 1, 7, 0])
    indices, positions, hashes = zip(*((each.index, each.position, each.hash) for each in blocks), strict=True)
    wanted = [block_digest(host.buffer(each.index), each.position, each.hash) for each in blocks]
    assert BlockDigests(DevicePool(8)).of(indices, positions, hashes) == wanted
    assert BlockDigests(host).of(indices, positions, hashes) == wanted
    assert DigestMemo(BlockDigests(DevicePool(8))).of(blocks) == wanted


@pytest.mark.skipif(DEVICE == "cuda", reason="pretends that a host's memory is a GPU's")
def test_a_gpus_blocks_are_packed_with_the_digests_of_a_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kv_transfer.wire._MEASURED_BLOCKS", 1)  # the interpreter takes 0.1 s for each
    shape = KvLayout(layers=1, kv_heads=1, head_dim=8, block_size_tokens=16, dtype="float32")
    pool, blocks = DevicePool(8, layout=shape), references([3, 1, 7, 0])
    wire = make_wire(TransferSettings(wire_format="int8"), shape, pool)
    assert wire is not None
    packed = wire.pack(blocks)
    wanted = [block_digest(pool.bytes[each.index], each.position, each.hash) for each in blocks]
    assert [wire.unpack(row, 5) for row in packed] == wanted


COMPILE = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
import triton
from kv_transfer.copy_triton_kernel import copy_rows
from kv_transfer.digest_triton_kernel import chain_steps, sum_stripes

WORDS = ("rows", "asked", "words", "sums", "digests")

def compiled(kernel, constants, **options):
    names = kernel.arg_names
    aligned = {(names.index(name),): [["tt.divisibility", 16]] for name in names if name not in ("blocks", *constants)}
    kinds = {name: "*u64" if name in WORDS else "constexpr" if name in constants else "i32" for name in names}
    places = {(names.index(name),): value for name, value in constants.items()}
    source = ASTSource(fn=kernel, signature=kinds, constexprs=places, attrs=aligned)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"]

sums = compiled(sum_stripes, dict(COLUMNS=128, TURNS=4))
assert sums.count("ld.global.v2.b64") == 8  # 16 KiB by 128 threads, each with 16 bytes at a time
chain = compiled(chain_steps, dict(BLOCKS=4, STEPS=16), num_warps=1)
assert "mul.hi.u64" in chain
assert "bar.sync" not in chain
WORDS = ("anchor", "pieces")
copy = compiled(copy_rows, dict(WIDE=True, WIDTH=1024))
assert copy.count("ld.global.v2.b64") == copy.count("st.global.v2.b64") == 4
"""


def test_hopper_reads_and_copies_sixteen_bytes_at_a_time(tmp_path: Path) -> None:
    """Triton compiles without a GPU; in a process of its own, as this one may interpret."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    subprocess.run([sys.executable, "-c", COMPILE], check=True, timeout=300, env=environment)
