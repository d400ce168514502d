"""The benchmark of a GPU's blocks, two processes with small pools; over host memory where there is no GPU."""

import sys

import pytest
import torch

from benchmarks import kv_cuda
from benchmarks.block_lots import KIB, LotKind

KINDS = {
    f"64KiB.{count}.{'scattered' if scattered else 'contiguous'}": LotKind(
        size=64 * KIB, count=count, scattered=scattered
    )
    for count in (1, 32)
    for scattered in (False, True)
}


NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NO_GPU)])
async def test_every_measurement_moves_or_digests_its_lots(device: str) -> None:
    rows = await kv_cuda.measure(device, quick=True, pool_bytes=8 * 2**20, kinds=KINDS)
    assert [row.case for row in rows] == [
        case for case in kv_cuda.CASES if case.split(".", 2)[2].startswith(tuple(KINDS))
    ]
    assert all(row.value > 0 for row in rows)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_baton_bench_refuses_in_one_line_where_there_is_no_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks import kv  # noqa: PLC0415 - the others here do without gRPC, which a machine with a GPU may lack

    monkeypatch.setattr(sys, "argv", ["kv", "--device", "cuda"])
    with pytest.raises(SystemExit, match="2"):
        kv.main()
    told = capsys.readouterr()
    assert (told.out, told.err.count("\n")) == ("", 1)
    assert "sees no CUDA device" in told.err
