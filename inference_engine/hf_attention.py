"""The attention function that the models of `transformers` call in place of their own, over our pool.

Its life: `register` makes it known to transformers by name; a model is loaded under that name; each of the model's
modules is given the model's `CurrentStep`. In a forward pass a module calls the function with itself as the first
argument, the function finds the step by it, the step writes the rows' keys and values into the pool and attends. There
is nothing global but the name, so many models may live in one process.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.nn.functional import pad
from transformers import AttentionInterface, AttentionMaskInterface

from inference_engine.attention import StepAttention
from inference_engine.attention_capped import CappedStep
from inference_engine.batch import Batch
from inference_engine.kv_pool import KvPool

SERVING = "baton"
"""Without a mask: transformers builds none for a name that it has no mask function for."""
PROBING = "baton_probe"
"""With a mask that tells what it would have been."""

_SEAT = "baton_current_step"
_RULE = "baton_mask_rule"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCall:
    """What one layer asks of attention. Tensors are ``[rows, heads, head_dim]``; heads and widths may differ."""

    module: Any
    layer: int | None
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    scale: float
    """Of the scores; 1 / sqrt(head_dim) in most models."""
    cap: float | None
    sinks: torch.Tensor | None
    mask: Any
    options: dict[str, Any]
    """What else the model hands to its attention."""


class LayerStep(Protocol):
    """What a forward pass does with the calls of its layers."""

    def attend(self, call: LayerCall) -> torch.Tensor:
        """Return what the heads read, ``[rows, heads, width of the values]``."""
        ...


class CurrentStep:
    """The step that a model's forward pass is for. One a model; set before the pass, by whoever calls the model."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.step: LayerStep | None = None
        for module in model.modules():
            setattr(module, _SEAT, self)


class PooledStep:
    """One engine step: rows go into the pool and read from it."""

    def __init__(self, pool: KvPool, batch: Batch, attention: StepAttention, windows: tuple[int, ...]) -> None:
        self._storage = pool.storage
        self._batch = batch
        self._attention = attention
        self._windows = windows

    def attend(self, call: LayerCall) -> torch.Tensor:
        """See `LayerStep.attend`."""
        assert call.layer is not None
        kv_heads, _, head_dim = self._storage.shape[3:]
        memory = self._storage[:, call.layer]  # [blocks, 2, kv_heads, block_size, head_dim]
        for index, part in enumerate((call.key, call.value)):
            heads = part if part.shape[1] == kv_heads else part.repeat_interleave(kv_heads // part.shape[1], dim=1)
            fitting = _widened(heads, head_dim).to(memory.dtype)
            memory[:, index][self._batch.slot_blocks, :, self._batch.slot_offsets] = fitting
        # The back ends multiply scores by 1 / sqrt(head_dim of the pool); the query brings what turns that into scale.
        factor = call.scale * head_dim**0.5
        query = call.query if abs(factor - 1.0) < 1e-6 else call.query * factor
        query = _widened(query, head_dim).to(memory.dtype)
        window = self._windows[call.layer]
        if isinstance(self._attention, CappedStep):
            attended = self._attention.attend_capped(query, call.layer, window, call.cap, call.sinks)
        else:
            attended = self._attention.attend(query, call.layer, window)
        return attended[:, :, : call.value.shape[2]].to(call.query.dtype)


def register() -> None:
    """Make both names known to transformers. Doing it again changes nothing."""
    for name in (SERVING, PROBING):
        AttentionInterface.register(name, _attend)
    AttentionMaskInterface.register(PROBING, _telling_mask)


def mask_rule(mask: Any) -> Any:
    """Return the function of (batch, head, query position, key position) behind a mask made while probing, or None."""
    return getattr(mask, _RULE, None)


def _widened(heads: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Return ``heads`` filled up with zeros to ``[rows, heads, head_dim]``: products and values stay what they are."""
    return heads if heads.shape[2] == head_dim else pad(heads, (0, head_dim - heads.shape[2]))


def _attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attend as transformers' attention functions do: ``[1, heads, rows, head_dim]`` in, rows before heads out."""
    scale = options.pop("scaling", None)
    call = LayerCall(
        module=module,
        layer=getattr(module, "layer_idx", None),
        query=query[0].transpose(0, 1),
        key=key[0].transpose(0, 1),
        value=value[0].transpose(0, 1),
        scale=query.shape[-1] ** -0.5 if scale is None else float(scale),
        cap=options.pop("softcap", None),
        sinks=options.pop("s_aux", None),
        mask=attention_mask,
        options=options,
    )
    step: LayerStep | None = getattr(module, _SEAT).step
    assert step is not None, "a forward pass outside a step"
    return step.attend(call)[None], None


def _telling_mask(q_length: int, kv_length: int, mask_function: Any, **_: Any) -> torch.Tensor:
    """Return a mask that masks nothing and carries the rule that it was to be made by."""
    mask = torch.ones((1, 1, q_length, kv_length), dtype=torch.bool)
    setattr(mask, _RULE, mask_function)
    return mask
