"""Small random models of families that our own decoder does not know, by kind, as `tests.model_fixtures` makes its own.

What each is there for: experts (``mixtral``, ``qwen3_moe``, ``qwen2_moe``, the last with a window that its attention
is told of by the mask alone), capped scores, another scale and windows on some layers (``gemma2``, ``gemma3``), sinks
(``gpt_oss``), keys wider than values (``deepseek_v3``), layers of different heads (``gemma4``), one fused projection
(``phi3``), norms over all heads (``olmo2``).
"""

from pathlib import Path
from typing import Any

import torch
import transformers

from inference_engine.engine import Engine
from inference_engine.model_folder import open_model_folder
from inference_engine.settings import EngineSettings, ModelSettings
from tests.model_fixtures import EOS_TOKEN_ID, VOCABULARY, write_model

SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 300,
    "eos_token_id": EOS_TOKEN_ID,
    "pad_token_id": None,
    "tie_word_embeddings": False,
}
_ALTERNATING: dict[str, Any] = {
    "head_dim": 32,
    "num_hidden_layers": 4,
    "sliding_window": 24,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "query_pre_attn_scalar": 50,
}
_EXPERTS: dict[str, Any] = {
    "num_experts": 6,
    "num_local_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
}

_KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "mixtral": ("Mixtral", _EXPERTS),
    "qwen3_moe": ("Qwen3Moe", {**_EXPERTS, "head_dim": 32}),
    "qwen2_moe": (
        "Qwen2Moe",
        {**_EXPERTS, "use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1},
    ),
    "gemma2": ("Gemma2", {**_ALTERNATING, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 20.0}),
    "gemma3": ("Gemma3Text", _ALTERNATING),
    "gemma4": (
        "Gemma4Text",
        {
            **_ALTERNATING,
            "global_head_dim": 64,
            "num_global_key_value_heads": 1,
            "attention_k_eq_v": True,
            "hidden_size_per_layer_input": 0,
        },
    ),
    "phi3": ("Phi3", {"sliding_window": 24}),
    "olmo2": ("Olmo2", {}),
    "gpt_oss": (
        "GptOss",
        {**_EXPERTS, "head_dim": 16, "sliding_window": 24, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "deepseek_v3": (
        "DeepseekV3",
        {
            **_EXPERTS,
            "num_key_value_heads": 4,
            "q_lora_rank": 24,
            "kv_lora_rank": 16,
            "qk_nope_head_dim": 16,
            "qk_rope_head_dim": 8,
            "v_head_dim": 16,
            "n_routed_experts": 8,
            "n_group": 2,
            "topk_group": 1,
            "first_k_dense_replace": 1,
        },
    ),
}
KINDS = tuple(_KINDS)


def make_hf_model(folder: Path, kind: str, **overrides: Any) -> Path:
    """Write a model of ``kind`` to ``folder``; ``overrides`` are fields of its configuration."""
    family, fields = _KINDS[kind]
    return write_model(folder, family, {**SHAPE, **fields, **overrides}, seed=1)


def hf_engine(folder: Path, blocks: int = 64, **settings: Any) -> Engine:
    opened = open_model_folder(ModelSettings(path=str(folder), implementation="transformers"))
    return Engine.load(opened, EngineSettings(threads=1, **settings), blocks)


def hf_reference(folder: Path) -> Any:
    """Return the model as transformers runs it alone, in float32, with the attention that each model's file defines."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return model.train(mode=False)
