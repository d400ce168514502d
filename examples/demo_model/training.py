"""The training loop: windows of mixed lengths, a held-out loss as it goes, a state from which it can go on.

Every step sees the same number of tokens, as windows of 256, 512 or 1,024 in turn: short ones are cheap and many, long
ones keep the model sane when it writes a thousand tokens. A window starts at the beginning of a line, every third step
at a top-level definition, because that is how prompts start.

The learning rate warms up, stays, and falls in a line to zero over the last two fifths of the steps. So a run that was
interrupted before its fall can go on towards another number of steps, and ends as if it had been given that number.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaForCausalLM

from examples.demo_model.muon import Muon
from examples.demo_model.tokenization import TokenisedText

WINDOW_LENGTHS = (256, 512, 256, 1024)
DEFINITION_STEP_EVERY = 3
EVALUATION_LENGTH = 512
ADAM_BETAS = (0.9, 0.95)
GRADIENT_NORM_LIMIT = 1.0
FALL_SHARE = 0.4


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSettings:
    """Everything that, beside the corpus and the shape of the model, decides the weights."""

    seed: int
    steps: int
    tokens_per_step: int = 2048
    warm_up_steps: int = 60
    matrix_learning_rate: float = 0.02
    embedding_learning_rate: float = 0.003
    weight_decay: float = 0.05
    evaluate_every: int = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class LossPoint:
    """Losses in nats per token; the training loss is the mean since the point before."""

    step: int
    train_loss: float
    held_out_loss: float


class Training:
    """One run: the model, its two optimisers, the generator of the windows and the next step's number."""

    def __init__(self, model: LlamaForCausalLM, settings: TrainingSettings) -> None:
        matrices = [p for name, p in model.named_parameters() if p.ndim > 1 and "embed" not in name]
        others = [p for name, p in model.named_parameters() if p.ndim == 1 or "embed" in name]
        self.model = model
        self.step = 0
        self._settings = settings
        self._muon = Muon(matrices, settings.weight_decay)
        self._adam = torch.optim.AdamW(others, betas=ADAM_BETAS, weight_decay=0.0, fused=True)
        self._random = np.random.default_rng(settings.seed)

    def state(self) -> dict[str, Any]:
        """Return what `load_state` needs to go on from here; tensors are not copied."""
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "momenta": self._muon.momenta,
            "adam": self._adam.state_dict(),
            "random": self._random.bit_generator.state,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a state of a run with the same settings, but for the number of steps."""
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self._muon.momenta = state["momenta"]
        self._adam.load_state_dict(state["adam"])
        self._random.bit_generator.state = state["random"]

    def points(self, train_text: TokenisedText, held_out: TokenisedText) -> Iterator[LossPoint]:
        """Train to the last step; yield a point after every `evaluate_every` steps and after the last."""
        losses: list[float] = []
        while self.step < self._settings.steps:
            losses.append(self._train_step(train_text))
            self.step += 1
            if self.step % self._settings.evaluate_every == 0 or self.step == self._settings.steps:
                held_out_loss = evaluate(self.model, held_out, every=8)
                yield LossPoint(step=self.step, train_loss=sum(losses) / len(losses), held_out_loss=held_out_loss)
                losses.clear()

    def _train_step(self, text: TokenisedText) -> float:
        share = learning_rate_share(self.step, self._settings)
        loss = mean_loss(self.model, training_windows(text, self.step, self._settings.tokens_per_step, self._random))
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves this one method without types
        nn.utils.clip_grad_norm_(self.model.parameters(), GRADIENT_NORM_LIMIT)
        for group in self._adam.param_groups:
            group["lr"] = self._settings.embedding_learning_rate * share
        self._adam.step()
        self._muon.step(self._settings.matrix_learning_rate * share)
        self.model.zero_grad()
        return loss.item()


def learning_rate_share(step: int, settings: TrainingSettings) -> float:
    """Return the share, in (0, 1], of the peak learning rate at a step: it rises, stays, and falls to zero."""
    rise = (step + 1) / settings.warm_up_steps
    fall = (settings.steps - step) / (settings.steps * FALL_SHARE)
    return min(1.0, rise, fall)


def training_windows(text: TokenisedText, step: int, tokens: int, random: np.random.Generator) -> Tensor:
    """Draw the windows of one step, [windows, length + 1]: the inputs and, shifted by one, what they must predict."""
    length = WINDOW_LENGTHS[step % len(WINDOW_LENGTHS)]
    starts = text.definition_starts if step % DEFINITION_STEP_EVERY == 0 else text.line_starts
    chosen = random.choice(starts, tokens // length)
    chosen = np.minimum(chosen, len(text.token_ids) - length - 1)
    return torch.from_numpy(text.token_ids[chosen[:, None] + np.arange(length + 1)])


def mean_loss(model: LlamaForCausalLM, windows: Tensor) -> Tensor:
    """Return the mean cross-entropy in nats of predicting each window's tokens from those before them."""
    logits = model(input_ids=windows[:, :-1]).logits  # [windows, length, vocabulary]
    return functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())


@torch.no_grad()
def evaluate(model: LlamaForCausalLM, text: TokenisedText, *, every: int = 1) -> float:
    """Return the mean loss over the text cut into windows of 512, or over each `every`-th of them."""
    count = (len(text.token_ids) - 1) // EVALUATION_LENGTH
    starts = np.arange(0, count, every) * EVALUATION_LENGTH
    windows = torch.from_numpy(text.token_ids[starts[:, None] + np.arange(EVALUATION_LENGTH + 1)])
    losses = [mean_loss(model, part).item() * len(part) for part in torch.split(windows, 8)]
    return sum(losses) / len(windows)
