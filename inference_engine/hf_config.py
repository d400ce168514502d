"""What the engine must know of a model that `transformers` computes: sizes and windows, read with its own classes.

Defaults that config.json leaves out live in those classes, so nothing short of importing them is right. The import
takes seconds and brings torch along; it happens only under ``model.implementation = "transformers"``.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster_core.errors import ModelFolderError, PartUnavailable

_LARGEST = 1 << 26
_WINDOWED = {"full_attention": False, "sliding_attention": True}


@dataclass(frozen=True, slots=True, kw_only=True)
class HfConfig:
    """The shape of the model's memory, and its limits."""

    family: str
    vocab_size: int
    layers: int
    kv_heads: int
    """Of the layer that has most; where a layer has fewer, its heads are repeated."""
    head_dim: int
    """Of the widest keys or values of any layer; what is narrower is filled up with zeros."""
    max_context_tokens: int
    windows: tuple[int, ...]
    """For each layer how many tokens a token sees, itself included; 0: all before it."""


def read_hf_config(folder: Path, wanted_context_tokens: int) -> HfConfig:
    """Read config.json of ``folder`` as `transformers` does; ``wanted_context_tokens`` of 0 is the model's own limit.

    Raises `PartUnavailable` where transformers is not installed, `ModelFolderError` for a model that is no decoder or
    whose configuration says that its memory is not plain keys and values. What only the model's code can tell, its
    loading finds out.
    """
    place = str(folder / "config.json")
    config = _text_config(folder, place)
    layers = _size(config, "num_hidden_layers", place)
    by_layer = _by_layer(config, layers)
    heads = [_size(layer, "num_attention_heads", place) for layer in by_layer]
    context_tokens = _context(config, place, wanted_context_tokens)
    _check_rope(config, place, wanted_context_tokens or context_tokens)
    return HfConfig(
        family=str(config.model_type),
        vocab_size=_size(config, "vocab_size", place),
        layers=layers,
        kv_heads=max(map(_kv_heads, by_layer, heads)),
        head_dim=max(map(_head_dim, by_layer, heads)),
        max_context_tokens=context_tokens,
        windows=_windows(config, by_layer, place),
    )


def _text_config(folder: Path, place: str) -> Any:
    try:
        from transformers import AutoConfig  # noqa: PLC0415  # optional, and seconds
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES  # noqa: PLC0415
    except ImportError as error:
        message = (
            f"model.implementation: transformers cannot be imported ({error}); "
            "pip install 'baton-serve[hf]', or use implementation = \"baton\""
        )
        raise PartUnavailable(message) from error
    try:
        whole: Any = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # every model's class checks its fields in its own way
        reason = " ".join(str(error).split())
        message = (
            f"{place}: transformers does not read it ({reason[:300]}); name a model that it knows without own code"
        )
        raise ModelFolderError(message) from error
    if getattr(whole, "quantization_config", None) is not None:
        message = f"{place}: quantization_config is set; quantised weights are not served, use bfloat16 or float32"
        raise ModelFolderError(message)
    if whole.is_encoder_decoder:
        message = f"{place}: is_encoder_decoder is true; only decoders are served, name a model for causal language"
        raise ModelFolderError(message)
    if whole.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        message = f"{place}: model_type is {whole.model_type!r}, which transformers has no causal language model for"
        raise ModelFolderError(message)
    return whole.get_text_config()


def _size(config: Any, key: str, place: str) -> int:
    value = getattr(config, key, None)
    if type(value) is not int or not 1 <= value <= _LARGEST:
        message = (
            f"{place}: {key} is {value!r}; served are decoders all of whose layers attend over keys and values, "
            "and those say how many they have"
        )
        raise ModelFolderError(message)
    return value


def _context(config: Any, place: str, wanted: int) -> int:
    value = getattr(config, "max_position_embeddings", None)
    if type(value) is int and value > 0:
        return value
    if wanted:
        return wanted
    message = f"{place}: max_position_embeddings is {value!r}; say how much the model reads by model.max_context_tokens"
    raise ModelFolderError(message)


def _by_layer(config: Any, layers: int) -> list[Any]:
    """Return the configuration of each layer: the same for most models, different in heads for some."""
    found = getattr(config, "per_layer_config", None)
    return list(found) if found is not None and len(found) == layers else [config] * layers


def _kv_heads(layer: Any, heads: int) -> int:
    named = [getattr(layer, key, None) for key in ("num_key_value_heads", "num_global_key_value_heads")]
    return max((count for count in named if count), default=heads)


def _head_dim(layer: Any, heads: int) -> int:
    """Return the width of the widest keys or values. Latent attention names those of its parts."""
    if getattr(layer, "qk_nope_head_dim", None) is not None:
        return int(max(layer.qk_nope_head_dim + layer.qk_rope_head_dim, layer.v_head_dim))
    named = [getattr(layer, key, None) for key in ("head_dim", "global_head_dim")]
    return int(max((width for width in named if width), default=layer.hidden_size // heads))


def _windows(config: Any, by_layer: list[Any], place: str) -> tuple[int, ...]:
    windows = [
        0 if getattr(layer, "use_sliding_window", True) is False else getattr(layer, "sliding_window", None) or 0
        for layer in by_layer
    ]
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        return tuple(windows)
    other = sorted({str(kind) for kind in kinds} - set(_WINDOWED))
    if other or len(kinds) != len(windows):
        message = (
            f"{place}: layer_types has {', '.join(other) or f'{len(kinds)} entries for {len(windows)} layers'}; "
            f"served are models whose layers all are {' or '.join(_WINDOWED)}"
        )
        raise ModelFolderError(message)
    return tuple(window if _WINDOWED[kind] else 0 for kind, window in zip(kinds, windows, strict=True))


def _check_rope(config: Any, place: str, context_tokens: int) -> None:
    """Refuse a rotary embedding that changes with the longest sequence of a step: a row's KV would depend on others.

    Such an embedding is constant up to the context of the model's first training; a limit there makes it plain.
    """
    parameters = getattr(config, "rope_parameters", None) or {}
    each = [value for value in parameters.values() if isinstance(value, dict)] or [parameters]
    for rope in each:
        kind = rope.get("rope_type", "default")
        if kind not in {"longrope", "dynamic"}:
            continue
        limit = rope.get("original_max_position_embeddings") if kind == "longrope" else None
        limit = limit or getattr(config, "original_max_position_embeddings", None) or config.max_position_embeddings
        if context_tokens > limit:
            message = (
                f"{place}: rope_type {kind} changes past {limit} tokens, and with it memory that is written already; "
                f"set model.max_context_tokens to {limit} or less"
            )
            raise ModelFolderError(message)
