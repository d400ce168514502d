"""The GPU's decoder is the plain one, rounding included: in Triton's interpreter where there is no GPU."""

import pytest
import torch

from inference_engine.attention_reference import ReferenceAttention
from inference_engine.batch import build_batch
from inference_engine.decoder import Decoder
from inference_engine.kv_pool import DTYPES, KvPool
from inference_engine.model_config import ModelConfig
from inference_engine.model_folder import layout_of
from inference_engine.settings import EngineSettings
from inference_engine.step import SequenceSlice, StepPlan
from inference_engine.weights import load_weights
from tests.fake_engine import GREEDY
from tests.inference_engine.conftest import Models
from tests.model_fixtures import prompt_tokens

pytest.importorskip("triton")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
FARTHEST = {"float32": 1e-5, "bfloat16": 1e-2 if torch.cuda.is_available() else 4e-2}
"""The interpreter cuts numbers off where bfloat16 ends, where a GPU rounds them."""
PLANS = (
    (
        SequenceSlice(token_ids=prompt_tokens(5), start=0, block_table=[3, 1], draw=None),
        SequenceSlice(token_ids=[9], start=30, block_table=[2, 4, 0, 5, 6, 7, 8, 9], draw=GREEDY),
        SequenceSlice(token_ids=[4, 5], start=2, block_table=[10], draw=GREEDY, drafted=1),
    ),
    (SequenceSlice(token_ids=prompt_tokens(2), start=5, block_table=[3, 1], draw=None),),
)


def distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Return how far ours are from theirs, as a share of their size; 0 where there are none."""
    assert ours.shape == theirs.shape
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm()) if theirs.numel() else 0.0


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("llama", "float32"),
        ("qwen2", "float32"),
        ("qwen3", "float32"),
        ("mistral", "bfloat16"),
        ("qwen3", "bfloat16"),
    ],
)
def test_equals_the_plain_decoder(models: Models, kind: str, dtype: str) -> None:
    from inference_engine.triton_decoder import TritonDecoder  # noqa: PLC0415 - after the interpreter is chosen

    folder = models.opened(kind)
    assert isinstance(folder.config, ModelConfig)
    layout = layout_of(folder.config, EngineSettings(block_size_tokens=4, dtype=dtype))
    weights = load_weights(folder, DTYPES[dtype], DEVICE)
    pools = [KvPool(layout, 11, DEVICE) for _ in range(2)]
    pools[0].storage.normal_(generator=torch.Generator(DEVICE).manual_seed(2))
    pools[1].storage.copy_(pools[0].storage)
    plain = Decoder(folder.config, weights, pools[0], ReferenceAttention(pools[0]))
    fused = TritonDecoder(folder.config, weights, pools[1], ReferenceAttention(pools[1]))
    for plan in PLANS:
        batch = build_batch(StepPlan(slices=plan), 4, DEVICE)
        with torch.inference_mode():
            expected, logits = plain.logits(batch), fused.logits(batch)
        assert distance(logits, expected) < FARTHEST[dtype]
        assert distance(pools[1].storage, pools[0].storage) < FARTHEST[dtype]
