"""A decode worker in simulated time: requests whose guesses come true by chance, and steps that take what they take.

The clock is arithmetic, so a run of thousands of steps takes milliseconds, and its speed is compared with that of the
same run without guesses: the same tokens, the same batches, the same machine.
"""

import random
from dataclasses import dataclass, field

from inference_engine.acceptance import Acceptance, GuessKind
from inference_engine.speculation_control import Offer, SpeculationControl, StepReport


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Seconds of a step: weights once, rows by tiles, contexts by answers; and stumbles."""

    fixed_s: float = 0.010
    row_s: float = 0.0002
    answer_s: float = 0.0003
    second_row_s: float = 0.0
    """What the step from one row to more costs: another kernel."""
    tile: int = 1
    round_s: float = 0.0
    """A draft model's round; 0: prompt look-up."""
    noise: float = 0.0
    stumbles: float = 0.0
    """How many steps in one take ten times as long."""

    def luck(self, draw: random.Random) -> float:
        """Return by what a step's time is multiplied."""
        return (1.0 + self.noise * draw.uniform(-1.0, 1.0)) * (10.0 if draw.random() < self.stumbles else 1.0)

    def step_s(self, batch: int, guesses: int) -> float:
        rows = -(-(batch + guesses) // self.tile) * self.tile
        return self.fixed_s + self.answer_s * batch + self.row_s * rows + (self.second_row_s if rows > 1 else 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """The requests: always ``batch`` at once."""

    batch: int = 1
    tokens: int = 200
    """Of each answer."""
    chances: tuple[float, ...] = (0.5,)
    """Of a guess, by turns of the requests."""
    offered: float = 1.0
    """Part of the steps in which a request has guesses at all."""
    most: int = 8


@dataclass(slots=True)
class _Request:
    chance: float
    left: int
    acceptance: Acceptance


@dataclass(slots=True)
class Outcome:
    speculative_s: float = 0.0
    plain_s: float = 0.0
    written: int = 0
    guessed: int = 0
    accepted: int = 0
    steps: int = 0
    counts: list[int] = field(default_factory=list)

    @property
    def gain(self) -> float:
        return self.plain_s / self.speculative_s


def simulate(machine: Machine, load: Load, steps: int, seed: int, kind: GuessKind = GuessKind.MATCH) -> Outcome:
    """Run ``steps`` steps. Plain decoding would take one step's time without guesses for each token an answer."""
    draw = random.Random(seed)  # noqa: S311  # a simulation
    control = SpeculationControl()
    outcome = Outcome()
    turn = 0
    requests: list[_Request] = []
    while outcome.steps < steps:
        while len(requests) < load.batch:
            requests.append(_Request(load.chances[turn % len(load.chances)], load.tokens, control.new_request()))
            turn += 1
        offers = [
            Offer(request.acceptance, kind, min(load.most, request.left - 1) if draw.random() < load.offered else 0)
            for request in requests
        ]
        wanted = control.wants_guesses(len(requests))
        counts = control.choose(offers, 512) if wanted else [0] * len(requests)
        written = 0
        for request, offer, count in zip(requests, offers, counts, strict=True):
            accepted = 0
            while accepted < count and draw.random() < request.chance:
                accepted += 1
            if count:
                control.answer_took(offer, guessed=count, accepted=accepted)
            request.left -= accepted + 1
            written += accepted + 1
            outcome.accepted += accepted
        guesses = sum(counts)
        rounds = max(counts) if machine.round_s else 0
        draft_s = rounds * machine.round_s
        luck = machine.luck(draw)  # plain decoding would have had the same
        elapsed_s = machine.step_s(load.batch, guesses) * luck + draft_s
        plain_s = machine.step_s(load.batch, 0) * luck
        control.step_took(
            StepReport(
                batch=load.batch,
                guesses=guesses,
                written=written,
                elapsed_s=elapsed_s,
                draft_s=draft_s,
                rounds=rounds,
                drafting=sum(1 for count in counts if count) if machine.round_s else 0,
            )
        )
        outcome.steps += 1
        outcome.guessed += guesses
        outcome.written += written
        outcome.counts.append(guesses)
        outcome.speculative_s += elapsed_s
        outcome.plain_s += plain_s * written / load.batch
        requests = [request for request in requests if request.left > 0]
    return outcome
