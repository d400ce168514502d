"""Compiles the CPU's kernels by computing steps of a tiny model; numba keeps the result.

``python -m inference_engine.compile_kernels [DTYPE ...]``: `make setup` does float32, `make test` and `make bench` all.

So workers that start together need not compile them each.
"""

import sys

import torch

from cluster_core.layout import KvLayout
from inference_engine.attention_compiled import CompiledAttention
from inference_engine.batch import build_batch
from inference_engine.code_builder import GROUP
from inference_engine.compiled_decoder import MOST_FEW_ROWS, CompiledDecoder
from inference_engine.kv_pool import DTYPES, KvPool
from inference_engine.model_config import ModelConfig
from inference_engine.rope_config import PlainRope
from inference_engine.step import SequenceSlice, StepPlan
from inference_engine.weights import LayerWeights, ModelWeights, Projection

_CONFIG = ModelConfig(
    family="llama",
    vocab_size=GROUP,
    hidden_size=GROUP,
    intermediate_size=GROUP,
    layers=1,
    heads=1,
    kv_heads=1,
    head_dim=GROUP,
    max_context_tokens=1 << 16,
    norm_epsilon=1e-5,
    rope=PlainRope(theta=10000.0),
    windows=(0,),
    tied_embeddings=True,
    qkv_bias=False,
    output_bias=False,
    mlp_bias=False,
    head_norms=False,
)
_BLOCK_TOKENS = 16


def compile_kernels(dtype: str) -> None:
    """Compile the kernels of one type, or find that they are compiled."""
    layout = KvLayout(layers=1, kv_heads=1, head_dim=GROUP, block_size_tokens=_BLOCK_TOKENS, dtype=dtype)
    blocks = layout.blocks_for(MOST_FEW_ROWS + 1)
    pool = KvPool(layout, blocks, torch.device("cpu"))
    attention = CompiledAttention(pool, 1)
    decoder = CompiledDecoder(_CONFIG, _zeros(DTYPES[dtype]), attention)
    with torch.inference_mode():
        for rows in (1, MOST_FEW_ROWS + 1):
            piece = SequenceSlice(
                token_ids=[0] * rows, start=0, block_table=range(blocks), draw=None, prompt_logprobs=0
            )
            decoder.logits(build_batch(StepPlan(slices=(piece,)), _BLOCK_TOKENS, torch.device("cpu")))
    attention.close()


def _zeros(dtype: torch.dtype) -> ModelWeights:
    def projection(outputs: int) -> Projection:
        return Projection(weight=torch.zeros((1, outputs, GROUP), dtype=dtype), bias=None)

    norm = torch.ones((1, GROUP), dtype=dtype)
    embedding = torch.zeros((GROUP, GROUP), dtype=dtype)
    stacked = LayerWeights(
        input_norm=norm,
        query_key_value=projection(3 * GROUP),
        query_norm=None,
        key_norm=None,
        attention_output=projection(GROUP),
        inner_norm=norm,
        gate_up=projection(2 * GROUP),
        down=projection(GROUP),
    )
    return ModelWeights(
        embedding=embedding, stacked=stacked, layers=(stacked.layer(0),), final_norm=norm[0], head=embedding
    )


if __name__ == "__main__":
    for name in sys.argv[1:] or DTYPES:
        compile_kernels(name)
