"""Figures that a worker learns of itself while it works, for the balancer's predictions. 0.0 means not yet measured."""

from dataclasses import dataclass

SMOOTHING = 0.2
"""Weight of the newest measurement: the last dozen count."""

LEAST_PREFILL_TOKENS = 8
"""Steps with fewer prompt tokens than this say more about a step's fixed cost than about a token's."""

FORGETTING = 0.98
"""How much of the best transfer rate is believed after each slower transfer."""


def smoothed(known: float, measured: float) -> float:
    """Return the exponentially weighted mean after one more measurement."""
    return measured if known == 0.0 else known + SMOOTHING * (measured - known)


@dataclass(slots=True)
class LearnedRates:
    """The estimates, updated after each step and each import."""

    prefill_s_per_token: float = 0.0
    decode_step_s: float = 0.0
    transfer_bytes_per_s: float = 0.0
    transfer_fixed_s: float = 0.0

    def step_took(self, elapsed_s: float, prefill_tokens: int, decode_tokens: int) -> None:
        """Learn from one step of so many prompt tokens and so many running answers."""
        if prefill_tokens == 0:
            self.decode_step_s = smoothed(self.decode_step_s, elapsed_s)
        elif prefill_tokens >= LEAST_PREFILL_TOKENS:
            decode_s = self.decode_step_s if decode_tokens else 0.0
            own_s = max(elapsed_s - decode_s, elapsed_s / 2)
            self.prefill_s_per_token = smoothed(self.prefill_s_per_token, own_s / prefill_tokens)

    def transfer_took(self, moved_bytes: int, transfer_s: float, exposed_s: float) -> None:
        """Learn from one import.

        What moves beside other load is slower: the best of the recent rates is kept. A ``transfer_s`` of 0.0 has none.
        What remained exposed after the prefill is the fixed cost, since the rest moves while it runs.
        """
        if not moved_bytes:
            return
        if transfer_s > 0.0:
            self.transfer_bytes_per_s = max(self.transfer_bytes_per_s * FORGETTING, moved_bytes / transfer_s)
        self.transfer_fixed_s = smoothed(self.transfer_fixed_s, exposed_s)
