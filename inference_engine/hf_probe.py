"""Whether a loaded model of `transformers` is one that the pool can serve, found by watching a short forward pass.

The configuration says which layers there are and how far they see, but each model's code does with it what it likes.
So a few tokens are sent through the model, every call of attention is looked at, and a model that asks for anything
the pool does not give is refused when it is loaded, not served wrongly.
"""

from typing import Any

import torch

from cluster_core.errors import ModelFolderError
from inference_engine.hf_attention import CurrentStep, LayerCall, mask_rule
from inference_engine.hf_config import HfConfig

_ROWS = 4
_NOISE = 0.1  # of the logits' spread: rounding may differ where experts take other rows beside this one
_UNDERSTOOD = {
    *("dropout", "sliding_window", "is_causal", "position_ids", "use_cache", "output_attentions", "cache_position"),
    *("output_hidden_states", "output_router_logits", "return_dict", "position_embeddings", "logits_to_keep"),
}
"""What may come along with a call: known not to change the result, or checked elsewhere (windows by the mask)."""


class Probe:
    """A `LayerStep` that keeps the calls and answers with the rows' own values."""

    def __init__(self) -> None:
        self.calls: list[LayerCall] = []

    def attend(self, call: LayerCall) -> torch.Tensor:
        """See `LayerStep.attend`."""
        self.calls.append(call)
        group = call.query.shape[1] // call.value.shape[1]
        return call.value.repeat_interleave(group, dim=1)


def probe(model: Any, current: CurrentStep, config: HfConfig, place: str) -> bool:
    """Check the model, loaded under the name ``PROBING``; return whether its scores are capped or have sinks.

    Raises `ModelFolderError`, starting with ``place``, for what cannot be served.
    """
    watching = Probe()
    rows = torch.arange(min(_ROWS, config.vocab_size, config.max_context_tokens), device=model.device)
    try:
        logits = _last_logits(model, current, watching, rows)
        trouble = _trouble_with_layers(watching.calls, config)
        among_others = _last_logits(model, current, Probe(), torch.cat((rows[1:].flip(0), rows[-1:])))
        if not trouble and (logits - among_others).abs().max() > _NOISE * logits.std():
            trouble = "its rows mix outside attention"
    except Exception as error:  # noqa: BLE001  # a model that needs more than tokens and positions fails in its own way
        trouble = f"it cannot be called with tokens and positions alone ({' '.join(str(error).split())[:300]})"
    for call in watching.calls:
        trouble = trouble or _trouble_with_shape(call, config) or _trouble_with_reach(call, config)
    if trouble:
        message = f'{place}: {trouble}; model.implementation "transformers" does not serve such a {config.family} model'
        raise ModelFolderError(message)
    return any(call.cap is not None or call.sinks is not None for call in watching.calls)


def _last_logits(model: Any, current: CurrentStep, step: Probe, rows: torch.Tensor) -> torch.Tensor:
    """Return the logits of the last row, whose token and position both are the number given for it."""
    current.step = step
    try:
        with torch.inference_mode():
            output = model(input_ids=rows[None], position_ids=rows[None], use_cache=False)
    finally:
        current.step = None
    last: torch.Tensor = output.logits[0, -1].float()
    return last


def _trouble_with_layers(calls: list[LayerCall], config: HfConfig) -> str:
    found = [call.layer for call in calls]
    if not found:
        return "none of its layers attends through transformers' attention interface"
    other = sorted(set(range(config.layers)) - set(found))
    if other:
        return f"layers {', '.join(map(str, other))} do not attend through transformers' attention interface"
    if len(found) != config.layers:
        return f"it attends {len(found)} times where num_hidden_layers is {config.layers}"
    return ""


def _trouble_with_shape(call: LayerCall, config: HfConfig) -> str:
    heads, kv_heads = call.query.shape[1], call.key.shape[1]
    widest = max(part.shape[2] for part in (call.query, call.key, call.value))
    if config.kv_heads % kv_heads or heads % config.kv_heads or widest > config.head_dim:
        return (
            f"layer {call.layer} has {heads} heads on {kv_heads} of width {widest}, "
            f"which do not fit {config.kv_heads} of head_dim {config.head_dim}"
        )
    unknown = sorted(name for name, value in call.options.items() if value is not None and name not in _UNDERSTOOD)
    return f"layer {call.layer} gives {', '.join(unknown)} to its attention" if unknown else ""


def _trouble_with_reach(call: LayerCall, config: HfConfig) -> str:
    """Compare which keys the layer's queries see with what the pool shows them."""
    assert call.layer is not None
    window = config.windows[call.layer]
    trouble = f"layer {call.layer} does not see exactly "
    trouble += f"the last {window} tokens (sliding_window)" if window else "all tokens before"
    if call.mask is None:
        causal = call.options.get("is_causal")
        causal = getattr(call.module, "is_causal", True) if causal is None else causal
        return "" if causal and not window else trouble
    rule = mask_rule(call.mask)
    if rule is None:
        return f"layer {call.layer} brings a mask of its own making"
    places = {0, 1, 2, window, window + 1, 2 * window, config.max_context_tokens - 1}
    places |= {2**power - nearby for power in range(2, 27) for nearby in (0, 1)}
    each = torch.tensor(sorted(place for place in places if 0 <= place < config.max_context_tokens))
    queries, keys = each[:, None].to(call.query.device), each[None, :].to(call.query.device)
    zero = torch.zeros((), dtype=torch.long, device=call.query.device)
    try:
        seen = rule(zero, zero, queries, keys)
    except (IndexError, RuntimeError):  # it looks positions up in a table as long as the probe
        return f"layer {call.layer} brings a mask that depends on more than positions"
    right = (keys <= queries) & (keys > queries - window) if window else keys <= queries
    return "" if torch.equal(seen.expand_as(right), right) else trouble
