"""A model's shape, read from config.json: the four families differ only in the fields of one dataclass."""

from dataclasses import dataclass

from inference_engine.json_fields import JsonFields
from inference_engine.rope_config import RopeConfig, read_rope

FAMILIES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}

_HIGHEST = {"vocab_size": 1 << 24, "hidden_size": 1 << 17, "intermediate_size": 1 << 20, "num_hidden_layers": 1024}
_HIGHEST_HEADS = 4096
_HIGHEST_HEAD_DIM = 1024
_HIGHEST_CONTEXT = 1 << 26
_DEFAULT_QWEN_HEAD_DIM = 128
_DEFAULT_MISTRAL_WINDOW = 4096
_DEFAULT_MISTRAL_KV_HEADS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Everything the decoder must know beside the weights."""

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    max_context_tokens: int
    norm_epsilon: float
    rope: RopeConfig
    windows: tuple[int, ...]
    """For each layer how many tokens a token sees, itself included; 0: all before it."""
    tied_embeddings: bool
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    head_norms: bool
    """Queries and keys are normalised head by head before they are rotated."""


def read_model_config(fields: JsonFields) -> ModelConfig:
    """Build the configuration from config.json. Raises `ModelFolderError` naming the field that cannot be served."""
    family = _family(fields)
    if fields.values.get("quantization_config") is not None:
        fields.refuse("quantization_config", "quantised weights are not served; use float32, float16 or bfloat16")
    if fields.values.get("hidden_act", "silu") != "silu":
        fields.refuse("hidden_act", "only silu is served")
    sizes = {key: fields.whole(key, None, 1, highest) for key, highest in _HIGHEST.items()}
    heads = fields.whole("num_attention_heads", None, 1, _HIGHEST_HEADS)
    default_kv_heads = _DEFAULT_MISTRAL_KV_HEADS if family == "mistral" else heads
    kv_heads = fields.whole("num_key_value_heads", default_kv_heads, 1, heads)
    if heads % kv_heads:
        fields.refuse("num_key_value_heads", f"it must divide num_attention_heads, {heads}")
    head_dim = _head_dim(fields, family, sizes["hidden_size"], heads)
    context_tokens = fields.whole("max_position_embeddings", None, 1, _HIGHEST_CONTEXT)
    attention_bias = family in {"llama", "qwen3"} and fields.flag("attention_bias", default=False)
    return ModelConfig(
        family=family,
        vocab_size=sizes["vocab_size"],
        hidden_size=sizes["hidden_size"],
        intermediate_size=sizes["intermediate_size"],
        layers=sizes["num_hidden_layers"],
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        max_context_tokens=context_tokens,
        norm_epsilon=fields.number("rms_norm_eps", 1e-6),
        rope=read_rope(fields, context_tokens),
        windows=_windows(fields, family, sizes["num_hidden_layers"]),
        tied_embeddings=fields.flag("tie_word_embeddings", default=False),
        qkv_bias=attention_bias or family == "qwen2",
        output_bias=attention_bias,
        mlp_bias=family == "llama" and fields.flag("mlp_bias", default=False),
        head_norms=family == "qwen3",
    )


def expected_tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every tensor that the weight files must hold."""
    hidden, inner = config.hidden_size, config.intermediate_size
    query, key = config.heads * config.head_dim, config.kv_heads * config.head_dim
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, hidden)}
    projections = (
        ("self_attn.q_proj", query, hidden, config.qkv_bias),
        ("self_attn.k_proj", key, hidden, config.qkv_bias),
        ("self_attn.v_proj", key, hidden, config.qkv_bias),
        ("self_attn.o_proj", hidden, query, config.output_bias),
        ("mlp.gate_proj", inner, hidden, config.mlp_bias),
        ("mlp.up_proj", inner, hidden, config.mlp_bias),
        ("mlp.down_proj", hidden, inner, config.mlp_bias),
    )
    for layer in range(config.layers):
        place = f"model.layers.{layer}."
        for name, outputs, inputs, biased in projections:
            shapes[f"{place}{name}.weight"] = (outputs, inputs)
            if biased:
                shapes[f"{place}{name}.bias"] = (outputs,)
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{place}{name}.weight"] = (hidden,)
        if config.head_norms:
            shapes[f"{place}self_attn.q_norm.weight"] = (config.head_dim,)
            shapes[f"{place}self_attn.k_norm.weight"] = (config.head_dim,)
    shapes["model.norm.weight"] = (hidden,)
    if not config.tied_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, hidden)
    return shapes


def _family(fields: JsonFields) -> str:
    names = fields.sequence("architectures") or []
    named = [str(name) for name in names]
    if not named and fields.values.get("model_type") in FAMILIES.values():
        return str(fields.values["model_type"])
    served = [FAMILIES[name] for name in named if name in FAMILIES]
    if not served:
        right = f'served are {", ".join(FAMILIES)}, and others by model.implementation = "transformers"'
        fields.refuse("architectures", right)
    return served[0]


def _head_dim(fields: JsonFields, family: str, hidden: int, heads: int) -> int:
    if family == "qwen3":
        default = _DEFAULT_QWEN_HEAD_DIM
    else:
        default = hidden // heads
        if fields.values.get("head_dim") is None and hidden % heads:
            fields.refuse("hidden_size", f"it must be a multiple of num_attention_heads, {heads}")
    head_dim = fields.whole("head_dim", default, 2, _HIGHEST_HEAD_DIM)
    if head_dim % 2:
        fields.refuse("head_dim", "it must be even to be rotated")
    return head_dim


def _windows(fields: JsonFields, family: str, layers: int) -> tuple[int, ...]:
    if family == "mistral" and "sliding_window" not in fields.values:
        return (_DEFAULT_MISTRAL_WINDOW,) * layers
    window = 0
    if fields.values.get("sliding_window") is not None:
        window = fields.whole("sliding_window", None, 1, 1 << 30)
    if family == "mistral":
        return (window,) * layers
    if not family.startswith("qwen") or not fields.flag("use_sliding_window", default=False):
        return (0,) * layers
    if "sliding_window" not in fields.values:
        window = _DEFAULT_MISTRAL_WINDOW
    kinds = fields.sequence("layer_types")
    if kinds is None:
        first = fields.whole("max_window_layers", 28, 0, 1 << 20)
        return tuple(window if layer >= first else 0 for layer in range(layers))
    if len(kinds) != layers or not all(kind in {"full_attention", "sliding_attention"} for kind in kinds):
        fields.refuse("layer_types", f"it must name full_attention or sliding_attention for all {layers} layers")
    return tuple(window if kind == "sliding_attention" else 0 for kind in kinds)
