"""Which attention `auto` takes, and what is said when the one that is asked for cannot be had."""

from types import SimpleNamespace

import pytest
import torch

from cluster_core.errors import PartUnavailable
from inference_engine import attention_choice
from inference_engine.attention_choice import make_attention, uses_graphs
from inference_engine.settings import EngineSettings
from tests.inference_engine.test_attention_contract import Case


@pytest.fixture
def without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_choice, "find_spec", lambda _: None)


@pytest.fixture
def with_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_choice, "find_spec", lambda _: SimpleNamespace())


def chosen(**settings: str) -> str:
    engine = EngineSettings(**settings)  # type: ignore[arg-type]  # words alone
    return attention_choice._chosen(engine, torch.device(engine.device))


def test_a_cpu_takes_the_compiled_kernel() -> None:
    assert chosen() == "compiled"
    assert chosen(attention="reference") == "reference"


@pytest.mark.usefixtures("with_triton")
def test_cuda_in_float32_takes_our_kernels() -> None:
    assert chosen(device="cuda") == "triton"


@pytest.mark.usefixtures("without_triton")
def test_without_triton_float32_is_computed_in_torch() -> None:
    assert chosen(device="cuda") == "reference"


@pytest.mark.usefixtures("without_triton")
def test_triton_that_is_asked_for_and_missing_is_told() -> None:
    pool = Case("reference", "float32", "mha", [(1, 0)]).pool
    with pytest.raises(PartUnavailable, match="triton is not installed"):
        make_attention(EngineSettings(device="cuda", attention="triton"), pool)


@pytest.mark.usefixtures("with_triton")
@pytest.mark.parametrize(
    ("settings", "graphs"),
    [
        ({}, False),
        ({"device": "cuda"}, True),
        ({"device": "cuda:1", "attention": "triton"}, True),
        ({"device": "cuda", "attention": "reference"}, False),
        ({"device": "cuda", "cuda_graphs": False}, False),
    ],
)
def test_graphs_are_for_cuda_and_our_kernels(settings: dict[str, object], graphs: bool) -> None:
    assert uses_graphs(EngineSettings(**settings)) is graphs  # type: ignore[arg-type]  # as the settings are read


@pytest.mark.usefixtures("without_triton")
def test_no_graphs_without_triton() -> None:
    assert not uses_graphs(EngineSettings(device="cuda"))
