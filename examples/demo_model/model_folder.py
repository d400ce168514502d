"""Write the model as an ordinary Hugging Face folder, its weights rounded to bfloat16.

The output layer is the embedding itself (`tie_word_embeddings`), so the weights file holds that matrix once.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

CONTEXT_TOKENS = 2048
END_TOKEN_ID = 0
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": END_TOKEN_ID,
    "eos_token_id": END_TOKEN_ID,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 256,
    "initializer_range": 0.02,
    "intermediate_size": 512,
    "max_position_embeddings": CONTEXT_TOKENS,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 4096,
}
GENERATION_CONFIG = {
    "bos_token_id": END_TOKEN_ID,
    "eos_token_id": END_TOKEN_ID,
    "pad_token_id": END_TOKEN_ID,
    "do_sample": False,
}


def new_model(vocab_size: int) -> LlamaForCausalLM:
    """Return an untrained float32 model with random weights from torch's generator."""
    return LlamaForCausalLM(LlamaConfig(**CONFIG | {"vocab_size": vocab_size, "torch_dtype": "float32"}))


def save_model(model: LlamaForCausalLM, folder: Path) -> None:
    """Write the weights, `config.json` and `generation_config.json`; the model itself stays as it is."""
    folder.mkdir(parents=True, exist_ok=True)
    config = CONFIG | {"vocab_size": model.config.vocab_size}
    tensors = {name: value.to(torch.bfloat16).contiguous() for name, value in model.state_dict().items()}
    del tensors["lm_head.weight"]
    unfinished = folder / "model.safetensors.part"
    save_file(tensors, unfinished, metadata={"format": "pt"})
    unfinished.chmod(0o644)  # the library writes it for its owner alone
    unfinished.replace(folder / "model.safetensors")
    for name, values in (("config.json", config), ("generation_config.json", GENERATION_CONFIG)):
        (folder / name).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
