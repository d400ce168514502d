"""Rotary position embedding as a model's configuration asks for it, in the old spelling and in the new one.

Old: ``rope_theta`` beside ``rope_scaling`` (whose kind is ``rope_type`` or ``type``). New: ``rope_parameters``, which
holds the theta too. Semantics follow ``modeling_rope_utils`` of transformers 5.
"""

from dataclasses import dataclass

from inference_engine.json_fields import JsonFields

DEFAULT_THETA = 10_000.0

_KINDS = ("default", "linear", "dynamic", "llama3", "yarn")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainRope:
    """Frequencies theta^(-2i/head_dim), all divided by ``factor`` (1: not scaled)."""

    theta: float
    factor: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Llama3Rope:
    """Low frequencies divided by ``factor``, high ones kept, those between blended."""

    theta: float
    factor: float
    low_frequency_factor: float
    high_frequency_factor: float
    original_context_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class YarnRope:
    """Frequencies blended by how often they turn within the original context; cosine and sine scaled."""

    theta: float
    factor: float
    beta_fast: float
    beta_slow: float
    attention_factor: float | None
    mscale: float | None
    mscale_all_dim: float | None
    truncate: bool
    original_context_tokens: int


RopeConfig = PlainRope | Llama3Rope | YarnRope


def read_rope(fields: JsonFields, context_tokens: int) -> RopeConfig:
    """Read the rotary embedding from the top-level ``fields`` of config.json.

    The dynamic kind changes its frequencies only past the model's own context, where blocks computed earlier would no
    longer fit; the context ends there, so it is plain.
    """
    scaling = fields.within("rope_scaling") or fields.within("rope_parameters") or JsonFields({}, "config.json")
    theta = scaling.number("rope_theta", fields.number("rope_theta", DEFAULT_THETA))
    for holder in (fields, scaling):
        if holder.number("partial_rotary_factor", 1.0) != 1.0:
            holder.refuse("partial_rotary_factor", "only models that rotate whole heads are served")
    kind = scaling.values.get("rope_type") or scaling.values.get("type") or "default"
    if kind not in _KINDS:
        scaling.refuse("rope_type", f"served are {', '.join(_KINDS)}")
    match kind:
        case "default" | "dynamic":
            return PlainRope(theta=theta)
        case "linear":
            return PlainRope(theta=theta, factor=scaling.number("factor", None))
        case "llama3":
            low = scaling.number("low_freq_factor", None)
            return Llama3Rope(
                theta=theta,
                factor=scaling.number("factor", None),
                low_frequency_factor=low,
                high_frequency_factor=scaling.number("high_freq_factor", None, above=low),
                original_context_tokens=_original_context(fields, scaling, context_tokens),
            )
        case _:
            return _read_yarn(fields, scaling, theta, context_tokens)


def _original_context(fields: JsonFields, scaling: JsonFields, context_tokens: int) -> int:
    key = "original_max_position_embeddings"
    holder = fields if fields.values.get(key) is not None else scaling
    return holder.whole(key, context_tokens, 1, 1 << 30)


def _read_yarn(fields: JsonFields, scaling: JsonFields, theta: float, context_tokens: int) -> YarnRope:
    original = _original_context(fields, scaling, context_tokens)

    def optional(key: str) -> float | None:
        return None if scaling.values.get(key) is None else scaling.number(key, None, above=-1.0)

    return YarnRope(
        theta=theta,
        factor=scaling.number("factor", context_tokens / original),
        beta_fast=optional("beta_fast") or 32.0,
        beta_slow=optional("beta_slow") or 1.0,
        attention_factor=optional("attention_factor"),
        mscale=optional("mscale"),
        mscale_all_dim=optional("mscale_all_dim"),
        truncate=scaling.flag("truncate", default=True),
        original_context_tokens=original,
    )
