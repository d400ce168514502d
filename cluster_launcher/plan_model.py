"""Reads what `baton plan` must know of a model from config.json; weights are looked at only where nothing else tells.

The families that the engine serves are read as the engine reads them. For other decoders the fields have names that are
nearly the same everywhere, so the KV of most is known; how many weights they have is known for those listed here, and
for the others from the headers of the weight files or not at all.
"""

import math
from collections.abc import Callable
from pathlib import Path

from cluster_core.capacity import GroupedHeads, LatentHeads, ModelShape
from cluster_core.errors import ModelFolderError
from inference_engine.json_fields import JsonFields, read_json_object
from inference_engine.model_config import FAMILIES, expected_tensors, read_model_config
from inference_engine.safetensors_header import read_header

_MOST = 1 << 26
_GEMMA = frozenset({"gemma", "gemma2", "gemma3_text"})
_FOUR_NORMS = frozenset({"gemma2", "gemma3_text"})
_HEAD_NORMS = frozenset({"qwen3_moe", "gemma3_text"})
_KNOWN_WEIGHTS = frozenset({"mixtral", "qwen2_moe", "qwen3_moe", "phi3", "deepseek_v2", "deepseek_v3"}) | _GEMMA


def read_shape(model: Path, weight_bytes: int = 0) -> ModelShape:
    """Read the folder or config.json ``model``. ``weight_bytes`` of 0 means that the weights must be found out.

    Raises `ModelFolderError`, one line naming the field or file, for a model whose memory is not plain enough.
    """
    path = model.expanduser()
    config = path / "config.json" if path.is_dir() else path
    values = read_json_object(config)
    fields = JsonFields(values, str(config))
    if "num_hidden_layers" not in values:
        fields = fields.within("text_config") or fields
    name = config.resolve().parent.name if config.name == "config.json" else config.stem
    if any(architecture in FAMILIES for architecture in fields.sequence("architectures") or ()):
        return _served(name, fields)
    if fields.values.get("quantization_config") is not None and not weight_bytes:
        fields.refuse("quantization_config", "say with --weights-gb how much memory the quantised weights take")
    return ModelShape(
        name=name,
        parameters=0 if weight_bytes else _parameters(config, fields),
        attention=_attention(fields),
        windows=_windows(fields),
        max_context_tokens=fields.whole("max_position_embeddings", None, 1, _MOST),
    )


def _served(name: str, fields: JsonFields) -> ModelShape:
    config = read_model_config(fields)
    return ModelShape(
        name=name,
        parameters=sum(math.prod(shape) for shape in expected_tensors(config).values()),
        attention=GroupedHeads(heads=config.heads, kv_heads=config.kv_heads, head_dim=config.head_dim),
        windows=config.windows,
        max_context_tokens=config.max_context_tokens,
    )


def _kind(fields: JsonFields) -> str:
    return str(fields.values.get("model_type") or "")


def _size(fields: JsonFields, key: str, default: int | None = None) -> int:
    return fields.whole(key, default, 0 if default == 0 else 1, _MOST)


def _attention(fields: JsonFields) -> GroupedHeads | LatentHeads:
    heads = _size(fields, "num_attention_heads")
    if fields.values.get("kv_lora_rank") is not None:
        latent, rotated = _size(fields, "kv_lora_rank"), _size(fields, "qk_rope_head_dim")
        return LatentHeads(heads=heads, latent_dim=latent, rotated_dim=rotated)
    kv_heads = _size(fields, "num_key_value_heads", heads)
    if heads % kv_heads:
        fields.refuse("num_key_value_heads", f"it must divide num_attention_heads, {heads}")
    head_dim = _size(fields, "head_dim", max(1, _size(fields, "hidden_size") // heads))
    return GroupedHeads(heads=heads, kv_heads=kv_heads, head_dim=head_dim)


def _windows(fields: JsonFields) -> tuple[int, ...]:
    layers = _size(fields, "num_hidden_layers")
    window = _size(fields, "sliding_window", 0)
    kind, named = _kind(fields), fields.sequence("layer_types")
    if named is not None:
        if len(named) != layers or not set(named) <= {"full_attention", "sliding_attention"}:
            fields.refuse("layer_types", f"known are full_attention and sliding_attention, one for each of {layers}")
        return tuple(window if each == "sliding_attention" else 0 for each in named)
    if kind == "gemma2":
        return tuple(0 if layer % 2 else window for layer in range(layers))
    if kind == "gemma3_text":
        every = _size(fields, "sliding_window_pattern", 6)
        return tuple(window if (layer + 1) % every else 0 for layer in range(layers))
    if kind.startswith("qwen") and not fields.flag("use_sliding_window", default=False):
        return (0,) * layers
    return (window,) * layers


def _parameters(config: Path, fields: JsonFields) -> int:
    """Count the weights, by the family's formula or from the headers of the files beside config.json."""
    if _kind(fields) in _KNOWN_WEIGHTS:
        return _counted(fields)
    files = sorted(config.parent.glob("*.safetensors"))
    if not files:
        message = (
            f"{config}: model_type is {_kind(fields)!r}, whose weights config.json does not tell; "
            "say with --weights-gb how much memory they take, or name a folder with *.safetensors"
        )
        raise ModelFolderError(message)
    return sum(math.prod(shape) for file in files for shape in read_header(file).shapes.values())


def _counted(fields: JsonFields) -> int:
    kind, hidden, vocabulary = _kind(fields), _size(fields, "hidden_size"), _size(fields, "vocab_size")
    layers = _size(fields, "num_hidden_layers")
    tied = fields.flag("tie_word_embeddings", default=kind in _GEMMA)
    norms = hidden * (4 if kind in _FOUR_NORMS else 2)
    attention = _attention_weights(fields)
    experts = _expert_weights(fields)
    dense = 3 * hidden * _size(fields, "intermediate_size")
    mixed = sum(map(_mixed_layers(fields), range(layers)))
    feed_forward = mixed * experts + (layers - mixed) * dense
    return layers * (attention + norms) + feed_forward + vocabulary * hidden * (1 if tied else 2) + hidden


def _attention_weights(fields: JsonFields) -> int:
    hidden, attention = _size(fields, "hidden_size"), _attention(fields)
    if isinstance(attention, GroupedHeads):
        width = (attention.heads + 2 * attention.kv_heads) * attention.head_dim
        biases = width if _kind(fields) == "qwen2_moe" and fields.flag("qkv_bias", default=True) else 0
        norms = 2 * attention.head_dim if _kind(fields) in _HEAD_NORMS else 0
        return hidden * (width + attention.heads * attention.head_dim) + biases + norms
    plain, value = _size(fields, "qk_nope_head_dim"), _size(fields, "v_head_dim")
    latent, rotated, heads = attention.latent_dim, attention.rotated_dim, attention.heads
    query_width, query_rank = heads * (plain + rotated), _size(fields, "q_lora_rank", 0)
    query = query_rank * (hidden + query_width + 1) if query_rank else hidden * query_width
    keys = hidden * (latent + rotated) + latent + latent * heads * (plain + value)
    return query + keys + heads * value * hidden


def _expert_weights(fields: JsonFields) -> int:
    """Return the weights of one layer's experts, router and shared experts; 0 where the model has no experts."""
    kind, hidden = _kind(fields), _size(fields, "hidden_size")
    match kind:
        case "mixtral":
            experts, inner, shared, gates = _experts(fields), _size(fields, "intermediate_size"), 0, 0
        case "qwen2_moe":
            experts, inner = _experts(fields), _size(fields, "moe_intermediate_size")
            shared, gates = _size(fields, "shared_expert_intermediate_size"), hidden
        case "qwen3_moe":
            experts, inner, shared, gates = _experts(fields), _size(fields, "moe_intermediate_size"), 0, 0
        case "deepseek_v2" | "deepseek_v3":
            experts, inner = _experts(fields), _size(fields, "moe_intermediate_size")
            shared = inner * _size(fields, "n_shared_experts", 0)
            gates = experts if kind == "deepseek_v3" else 0  # a correction a routed expert
        case _:
            return 0
    return 3 * hidden * (experts * inner + shared) + hidden * experts + gates


def _experts(fields: JsonFields) -> int:
    """Return the routed experts of a layer; versions of transformers write them under different names."""
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    return _size(fields, next((name for name in names if fields.values.get(name) is not None), names[0]))


def _mixed_layers(fields: JsonFields) -> Callable[[int], bool]:
    """Return which layers have experts."""
    kind = _kind(fields)
    if kind.startswith("deepseek"):
        first = _size(fields, "first_k_dense_replace", 0)
        return lambda layer: layer >= first
    if kind in {"qwen2_moe", "qwen3_moe"}:
        every, dense = _size(fields, "decoder_sparse_step", 1), fields.sequence("mlp_only_layers") or ()
        return lambda layer: layer not in dense and (layer + 1) % every == 0
    return lambda _layer: kind == "mixtral"
