"""Rotary position embedding (https://arxiv.org/abs/2104.09864): the two halves of a head are rotated in pairs."""

import math
from typing import assert_never

import torch

from inference_engine.rope_config import Llama3Rope, PlainRope, RopeConfig, YarnRope


class Rope:
    """Gives the cosines and sines of any positions."""

    def __init__(self, config: RopeConfig, head_dim: int, device: torch.device) -> None:
        frequencies, self._amplitude = _frequencies(config, head_dim)
        self._frequencies = frequencies.to(device)  # [head_dim / 2] float32

    def tables(self, positions: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cosine and sine, each ``[rows, 1, head_dim]``, of ``positions`` ``[rows]``."""
        angles = positions[:, None].float() * self._frequencies
        angles = torch.cat((angles, angles), dim=-1)[:, None, :]
        return (angles.cos() * self._amplitude).to(dtype), (angles.sin() * self._amplitude).to(dtype)


def rotate(heads: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """Rotate ``heads`` ``[rows, heads, head_dim]`` by their rows' angles."""
    first, second = heads.chunk(2, dim=-1)
    return heads * cosine + torch.cat((-second, first), dim=-1) * sine


def _frequencies(config: RopeConfig, head_dim: int) -> tuple[torch.Tensor, float]:
    """Return radians a token for each pair of dimensions, and the factor of cosine and sine."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    plain = 1.0 / (config.theta**exponents)
    match config:
        case PlainRope():
            return plain / config.factor, 1.0
        case Llama3Rope():
            return _llama3(config, plain), 1.0
        case YarnRope():
            return _yarn(config, config.theta**exponents, head_dim), _yarn_amplitude(config)
        case _:
            assert_never(config)


def _llama3(config: Llama3Rope, plain: torch.Tensor) -> torch.Tensor:
    """Llama 3.1's scaling: the share of the plain frequency grows with the turns within the original context."""
    low, high = config.low_frequency_factor, config.high_frequency_factor
    original = config.original_context_tokens
    wavelengths = 2 * math.pi / plain
    slowed = torch.where(wavelengths > original / low, plain / config.factor, plain)
    share = (original / wavelengths - low) / (high - low)
    blended = (1 - share) * slowed / config.factor + share * slowed
    between = ~(wavelengths < original / high) & ~(wavelengths > original / low)
    return torch.where(between, blended, slowed)


def _yarn(config: YarnRope, periods: torch.Tensor, head_dim: int) -> torch.Tensor:
    """YaRN (https://arxiv.org/abs/2309.00071), section 3.2: interpolate the dimensions that turn seldom."""

    def dimension_of(turns: float) -> float:
        span = config.original_context_tokens / (turns * 2 * math.pi)
        return head_dim * math.log(span) / (2 * math.log(config.theta))

    first, last = dimension_of(config.beta_fast), dimension_of(config.beta_slow)
    if config.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, head_dim - 1)
    if first == last:
        last += 0.001  # no division by zero
    ramp = torch.clamp((torch.arange(head_dim // 2, dtype=torch.float32) - first) / (last - first), 0, 1)
    kept = 1 - ramp
    return 1.0 / (config.factor * periods) * (1 - kept) + 1.0 / periods * kept


def _yarn_amplitude(config: YarnRope) -> float:
    """Return the temperature of the paper's section 3.4, as a factor of cosine and sine."""
    if config.attention_factor is not None:
        return config.attention_factor

    def amplitude(weight: float) -> float:
        return 1.0 if config.factor <= 1 else 0.1 * weight * math.log(config.factor) + 1.0

    if config.mscale and config.mscale_all_dim:
        return amplitude(config.mscale) / amplitude(config.mscale_all_dim)
    return amplitude(1.0)
