"""A plan as lines and tables for a terminal."""

from collections.abc import Iterator

from rich.console import RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from cluster_core.capacity import hiding_gigabits_per_s, token_bytes
from cluster_core.capacity_fit import GpuFit
from cluster_launcher.plan_computation import Plan
from cluster_launcher.plan_facts import LINE_RATES, prompt_facts
from cluster_launcher.timeline import duration

_UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def render_plan(plan: Plan) -> Iterator[RenderableType]:
    """Yield what a person reads of the plan."""
    yield from _model(plan)
    for fit in plan.fits:
        yield from _gpu(plan, fit)
    yield from _transfers(plan)


def size(count: float) -> str:
    """Return bytes in the decimal unit that leaves a number from 1 to 1000."""
    for unit, name in _UNITS:
        if abs(count) >= unit:
            return f"{count / unit:.2f} {name}"
    return f"{count:.0f} B"


def _number(count: int) -> str:
    return f"{count / 1e9:.2f} billion" if count >= 1e8 else f"{count / 1e6:.2f} million"


def _model(plan: Plan) -> Iterator[RenderableType]:
    serving, shape = plan.serving, plan.serving.shape
    each = token_bytes(shape, serving.number_bytes)
    counted = f"{_number(shape.parameters)} parameters, " if shape.parameters else ""
    yield f"[bold]{escape(shape.name)}[/]: {counted}weights {size(serving.weight_bytes)}, numbers are {plan.dtype}"
    yield (
        f"  KV {each:,} bytes a token over {shape.layers} layers; a block of {serving.block_size_tokens} tokens is "
        f"{each * serving.block_size_tokens:,} bytes"
    )
    if serving.ranks > 1:
        copies = f", {plan.copies} ranks keep the same KV" if plan.copies > 1 else ""
        yield (
            f"  on each of {serving.ranks} ranks: weights {size(serving.rank_weight_bytes)}, "
            f"KV {serving.rank_token_bytes:,} bytes a token{copies} "
            "[dim](a plan: the in-tree engine runs one rank a worker)[/]"
        )
    windowed = sum(window > 0 for window in shape.windows)
    if shape.window_tokens:
        yield f"  no layer sees more than {shape.window_tokens:,} tokens: older blocks are given back and never moved"
    elif windowed:
        yield (
            f"  {windowed} of {shape.layers} layers see a window only; a block holds all layers, "
            "so whole contexts are kept and moved"
        )


def _gpu(plan: Plan, fit: GpuFit) -> Iterator[RenderableType]:
    serving, gpu = plan.serving, fit.gpu
    many = f"{serving.ranks} x " if serving.ranks > 1 else ""
    yield (
        f"\n[bold]{many}{gpu.name}[/]: {size(gpu.memory_bytes)} and {size(gpu.bandwidth_bytes_per_s)}/s each "
        f"[dim]({gpu.source})[/]"
    )
    yield (
        f"  - weights {size(serving.rank_weight_bytes)} - workspace {size(fit.workspace_bytes)} "
        f"({serving.workspace_share:.0%}) = {size(fit.kv_bytes)} for KV: [bold]{fit.blocks:,} blocks[/] "
        f"({fit.blocks * serving.block_size_tokens:,} tokens)"
    )
    if fit.blocks:
        table = _table("context", "blocks a sequence", "largest batch", "decode step at least")
        for context in fit.contexts:
            step = duration(context.step_floor_s) if context.largest_batch else "-"
            table.add_row(f"{context.tokens:,}", f"{context.blocks:,}", f"{context.largest_batch:,}", step)
        yield Padding(table, (0, 0, 0, 2))
    for misfit in fit.misfits:
        yield Text.assemble("  ", ("does not fit: ", "bold red"), misfit)


def _transfers(plan: Plan) -> Iterator[RenderableType]:
    yield "\n[bold]hand-over of a prompt[/], all its blocks, at line rate [dim](a real link gives less)[/]"
    table = _table("prompt", "bytes moved", *(f"{rate} Gb/s" for rate in LINE_RATES))
    for facts in prompt_facts(plan):
        times = [duration(facts["transfer_s"][str(rate)]) for rate in LINE_RATES]
        table.add_row(f"{facts['tokens']:,}", size(facts["moved_bytes"]), *times)
    yield Padding(table, (0, 0, 0, 2))
    serving = plan.serving
    needed = hiding_gigabits_per_s(token_bytes(serving.shape, serving.number_bytes), plan.prefill_tokens_per_s)
    yield (
        f"  a prefill of {plan.prefill_tokens_per_s:,.0f} tokens/s hides the transfer behind it from "
        f"[bold]{needed:.1f} Gb/s[/] on"
    )


def _table(*names: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    return table
