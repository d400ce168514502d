"""Small random models in Hugging Face folders, made with transformers, the same for the same arguments.

``make_model(folder, "mistral")`` writes config.json, weights, tokenizer.json, tokenizer_config.json (with a chat
template) and generation_config.json. Every weight is random, norms and biases too, so that no tensor can be forgotten
unnoticed, and the spread is wide enough for greedy answers that vary instead of repeating one token.

Vocabulary (320): 0..255 the bytes in the order of the byte-level alphabet, 256.. a few merges, 300 ``<|bos|>``,
301 ``<|end|>`` (ends an answer), 302 ``<|system|>``, 303 ``<|user|>``, 304 ``<|assistant|>``; 305..319 have no text.
"""

import json
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from tokenizers import decoders, models, pre_tokenizers

VOCABULARY = 320
EOS_TOKEN_ID = 301
SPECIAL_TOKENS = ("<|bos|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
FIRST_SPECIAL_ID = 300

_MERGES = (
    *(("t", "h"), ("th", "e"), ("Ġ", "the"), ("i", "n"), ("in", "g"), ("a", "n"), ("an", "d"), ("Ġ", "and")),
    *(("e", "r"), ("o", "n"), ("r", "e"), ("Ġ", "a"), ("Ġ", "o"), ("Ġo", "f"), ("o", "u"), ("Ġ", "t"), ("Ġt", "o")),
)

CHAT_TEMPLATE = (
    "{{ '<|bos|>' }}{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('unknown role ' + message['role']) }}{% endif %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

_SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "bos_token_id": FIRST_SPECIAL_ID,
    "eos_token_id": EOS_TOKEN_ID,
    "pad_token_id": None,
}

_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 16.0, "original_max_position_embeddings": 256}

_KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama3_rope": ("Llama", {"rope_parameters": _LLAMA3}),
    "llama_linear_rope": (
        "Llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
    ),
    "llama_dynamic_rope": (
        "Llama",
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}},
    ),
    "llama_yarn_rope": ("Llama", {"rope_parameters": _YARN}),
    "llama_bias": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "mistral": ("Mistral", {"sliding_window": 24, "head_dim": 16}),
    "qwen2": ("Qwen2", {}),
    "qwen2_window": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1, "num_hidden_layers": 3},
    ),
    "qwen3": ("Qwen3", {"head_dim": 32}),
    "mqa": ("Llama", {"num_key_value_heads": 1}),
    "mha": ("Llama", {"num_key_value_heads": 4}),
    "untied": ("Llama", {"tie_word_embeddings": False}),
    "sharded": ("Llama", {}),
}
KINDS = tuple(_KINDS)


def make_model(folder: Path, kind: str, seed: int = 0, **overrides: Any) -> Path:
    """Write a model of ``kind`` (one of ``KINDS``) to ``folder`` and return ``folder``.

    ``overrides`` are fields of the transformers configuration; ``dtype="bfloat16"`` stores the weights in bfloat16.
    """
    family, fields = _KINDS[kind]
    return write_model(folder, family, {**_SHAPE, **fields, **overrides}, seed, sharded=kind == "sharded")


def write_model(folder: Path, family: str, fields: dict[str, Any], seed: int = 0, *, sharded: bool = False) -> Path:
    """Write a random model of any ``family`` of transformers, whose configuration has ``fields``, as `make_model`."""
    fields = dict(fields)
    dtype = getattr(torch, fields.pop("dtype", "float32"))
    config = getattr(transformers, f"{family}Config")(**fields)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]  # the library's own
    _randomise(model, seed)
    shard = {"max_shard_size": "60KB"} if sharded else {}
    model.to(dtype).save_pretrained(folder, **shard)
    _write_tokenizer(folder)
    generation = {"bos_token_id": FIRST_SPECIAL_ID, "eos_token_id": EOS_TOKEN_ID}
    (folder / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
    return folder


def prompt_tokens(length: int, seed: int = 0) -> list[int]:
    """Return ``length`` token ids without special ones, the same for the same arguments."""
    generator = torch.Generator().manual_seed(seed * 100_003 + length)
    return [int(token) for token in torch.randint(0, 256, (length,), generator=generator)]


def reference_model(folder: Path) -> Any:
    """Return the folder's model as transformers runs it, in float32."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.train(mode=False)


def reference_greedy(model: Any, prompt: list[int], max_tokens: int) -> list[int]:
    """Return what transformers writes after ``prompt``, the stop token included; ``model`` of `reference_model`."""
    inputs = torch.tensor([prompt])
    with torch.inference_mode():
        output = model.generate(
            inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=max_tokens, do_sample=False, pad_token_id=0
        )
    return [int(token) for token in output[0, len(prompt) :]]


def _randomise(model: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name:
                parameter.copy_(1.0 + 0.3 * noise)
            elif name.endswith("bias"):
                parameter.copy_(0.3 * noise)
            elif "embed" in name or "lm_head" in name:
                parameter.copy_(noise)
            else:
                parameter.copy_(2.0 * noise / parameter.shape[-1] ** 0.5)


def _write_tokenizer(folder: Path) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: index for index, character in enumerate(alphabet)}
    for left, right in _MERGES:
        vocabulary[left + right] = len(vocabulary)
    for index in range(len(vocabulary), FIRST_SPECIAL_ID):
        vocabulary[f"<unused{index}>"] = index
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=list(_MERGES)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|bos|>",
        "eos_token": "<|end|>",
        "model_max_length": 4096,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")
