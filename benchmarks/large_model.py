"""A model of the shape of Llama 3 8B with random weights: 16 GB in bfloat16, written in a minute at most."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import tokenizers
import torch
from tokenizers import models

LAYERS = 32
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 128256,
    "max_position_embeddings": 16384,
    "rope_theta": 500000.0,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "dtype": "bfloat16",
    "bos_token_id": 128000,
    "eos_token_id": 128001,
}
HIDDEN, INNER, VOCABULARY = 4096, 14336, 128256
_KEYS = 8 * 128
LAYER_PARAMETERS = HIDDEN * (2 * HIDDEN + 2 * _KEYS + 3 * INNER)
HEAD_PARAMETERS = VOCABULARY * HIDDEN
KV_BYTES_PER_TOKEN_AND_LAYER = 2 * _KEYS * 2
_NUMBER_BYTES = 2
_NOISE_NUMBERS = 1 << 25


def make_large_model(folder: Path, layers: int = LAYERS) -> Path:
    """Write the model to ``folder``, which is made if need be, and return ``folder``. Same bytes every time.

    Fewer layers make a smaller model of the same speed a layer. All matrices are pieces of one stretch of noise: what a
    product costs depends on its numbers being random, not on their being different from matrix to matrix.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = dict(CONFIG, num_hidden_layers=layers)
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    tokenizers.Tokenizer(models.BPE()).save(str(folder / "tokenizer.json"))
    noise = torch.randn(_NOISE_NUMBERS, generator=torch.Generator().manual_seed(1)) * 0.02
    random = noise.to(torch.bfloat16).view(torch.uint8).numpy().tobytes()
    ones = torch.ones(HIDDEN, dtype=torch.bfloat16).view(torch.uint8).numpy().tobytes()
    shapes = dict(_shapes(layers))
    with (folder / "model.safetensors").open("wb") as file:
        header = _header(shapes)
        file.write(len(header).to_bytes(8, "little") + header)
        for name, shape in shapes.items():
            if "norm" in name:
                file.write(ones)
                continue
            left = math.prod(shape) * _NUMBER_BYTES
            while left:
                left -= file.write(random[:left])
    return folder


def _shapes(layers: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "model.embed_tokens.weight", (VOCABULARY, HIDDEN)
    for layer in range(layers):
        place = f"model.layers.{layer}."
        yield f"{place}input_layernorm.weight", (HIDDEN,)
        yield f"{place}self_attn.q_proj.weight", (HIDDEN, HIDDEN)
        yield f"{place}self_attn.k_proj.weight", (_KEYS, HIDDEN)
        yield f"{place}self_attn.v_proj.weight", (_KEYS, HIDDEN)
        yield f"{place}self_attn.o_proj.weight", (HIDDEN, HIDDEN)
        yield f"{place}post_attention_layernorm.weight", (HIDDEN,)
        yield f"{place}mlp.gate_proj.weight", (INNER, HIDDEN)
        yield f"{place}mlp.up_proj.weight", (INNER, HIDDEN)
        yield f"{place}mlp.down_proj.weight", (HIDDEN, INNER)
    yield "model.norm.weight", (HIDDEN,)
    yield "lm_head.weight", (VOCABULARY, HIDDEN)


def _header(shapes: dict[str, tuple[int, ...]]) -> bytes:
    """Return a safetensors file's header: names, types, shapes and places, padded to 8 bytes."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + math.prod(shape) * _NUMBER_BYTES
        entries[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(entries).encode()
    return text + b" " * (-len(text) % 8)
