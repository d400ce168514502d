"""A plan as plain values: the object that `baton plan --json` prints."""

from typing import Any

from cluster_core.capacity import hiding_gigabits_per_s, moved_blocks, seen_bytes, token_bytes, transfer_s
from cluster_core.capacity_fit import ContextFit, GpuFit
from cluster_launcher.plan_computation import Plan

LINE_RATES = (25, 100, 400)
"""Gb/s."""


def plan_facts(plan: Plan) -> dict[str, Any]:
    """Return every figure of the plan."""
    serving, shape = plan.serving, plan.serving.shape
    each_token = token_bytes(shape, serving.number_bytes)
    return {
        "model": shape.name,
        "dtype": plan.dtype,
        "parameters": shape.parameters or None,
        "weight_bytes": serving.weight_bytes,
        "max_context_tokens": shape.max_context_tokens,
        "window_tokens": shape.window_tokens,
        "layers_with_window": sum(window > 0 for window in shape.windows),
        "kv_bytes_per_token": each_token,
        "block_size_tokens": serving.block_size_tokens,
        "block_bytes": each_token * serving.block_size_tokens,
        "tensor_parallel": serving.ranks,
        "rank_weight_bytes": serving.rank_weight_bytes,
        "rank_kv_bytes_per_token": serving.rank_token_bytes,
        "copies_of_kv": plan.copies,
        "gpus": [_gpu_facts(fit, serving.workspace_share) for fit in plan.fits],
        "prompts": prompt_facts(plan),
        "prefill_tokens_per_s": plan.prefill_tokens_per_s,
        "hiding_gigabits_per_s": hiding_gigabits_per_s(each_token, plan.prefill_tokens_per_s),
    }


def prompt_facts(plan: Plan) -> list[dict[str, Any]]:
    """Return for a prompt of each length what its layers see of it and what its hand-over moves."""
    serving, shape = plan.serving, plan.serving.shape
    block_bytes = token_bytes(shape, serving.number_bytes) * serving.block_size_tokens
    facts = []
    for tokens in plan.contexts:
        moved = moved_blocks(shape, tokens, serving.block_size_tokens) * block_bytes
        facts.append(
            {
                "tokens": tokens,
                "seen_bytes": seen_bytes(shape, tokens, serving.number_bytes),
                "moved_bytes": moved,
                "transfer_s": {str(rate): transfer_s(moved, rate) for rate in LINE_RATES},
            }
        )
    return facts


def _gpu_facts(fit: GpuFit, workspace_share: float) -> dict[str, Any]:
    return {
        "name": fit.gpu.name,
        "memory_bytes": fit.gpu.memory_bytes,
        "bandwidth_bytes_per_s": fit.gpu.bandwidth_bytes_per_s,
        "source": fit.gpu.source,
        "workspace_share": workspace_share,
        "workspace_bytes": fit.workspace_bytes,
        "kv_bytes": fit.kv_bytes,
        "blocks": fit.blocks,
        "contexts": [_context_facts(context) for context in fit.contexts],
        "misfits": list(fit.misfits),
    }


def _context_facts(context: ContextFit) -> dict[str, Any]:
    return {
        "tokens": context.tokens,
        "blocks": context.blocks,
        "largest_batch": context.largest_batch,
        "step_floor_s": context.step_floor_s,
    }
