"""Write what a training run leaves beside the weights: `training.json`, the loss curve as numbers and as a picture."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from examples.demo_model.training import LossPoint

WIDTH, HEIGHT = 720, 360
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 32, 44
TRAIN_COLOUR, HELD_OUT_COLOUR = "#3572a5", "#d9822b"
TEXT_STYLE = 'font-family="sans-serif" font-size="12" fill="#444"'


def write_report(folder: Path, facts: Mapping[str, object], points: Sequence[LossPoint]) -> None:
    """Write `training.json`, `loss_curve.csv` and `loss_curve.svg`; needs at least one point."""
    (folder / "training.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    rows = [f"{point.step},{point.train_loss:.4f},{point.held_out_loss:.4f}" for point in points]
    table = "\n".join(["step,train_loss,held_out_loss", *rows]) + "\n"
    (folder / "loss_curve.csv").write_text(table, encoding="utf-8")
    (folder / "loss_curve.svg").write_text(loss_curve_svg(points), encoding="utf-8")


def loss_curve_svg(points: Sequence[LossPoint]) -> str:
    """Draw both losses over the steps, with a grid line for every half nat."""
    losses = [loss for point in points for loss in (point.train_loss, point.held_out_loss)]
    lowest, highest = int(min(losses) * 2) / 2, int(max(losses) * 2 + 1) / 2
    last_step = points[-1].step

    def x_of(step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * step / last_step

    def y_of(loss: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (highest - loss) / (highest - lowest)

    def curve(colour: str, loss_of: Callable[[LossPoint], float]) -> str:
        corners = " ".join(f"{x_of(point.step):.1f},{y_of(loss_of(point)):.1f}" for point in points)
        return f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{corners}"/>'

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        "<title>Loss of the demo's model over its training</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
    ]
    for half_nats in range(round(lowest * 2), round(highest * 2) + 1):
        y = y_of(half_nats / 2)
        parts += [
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>',
            f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end" {TEXT_STYLE}>{half_nats / 2:.1f}</text>',
        ]
    for quarter in range(5):
        step = last_step * quarter // 4
        y = HEIGHT - BOTTOM + 18
        parts.append(f'<text x="{x_of(step):.1f}" y="{y}" text-anchor="middle" {TEXT_STYLE}>{step:,}</text>')
    parts += [
        f'<text x="{WIDTH / 2}" y="{HEIGHT - 8}" text-anchor="middle" {TEXT_STYLE}>step</text>',
        f'<text x="8" y="20" {TEXT_STYLE}>loss, nats per token</text>',
        f'<text x="{WIDTH - 230}" y="20" {TEXT_STYLE} style="fill:{TRAIN_COLOUR}">train</text>',
        f'<text x="{WIDTH - 180}" y="20" {TEXT_STYLE} style="fill:{HELD_OUT_COLOUR}">held out (unseen files)</text>',
        curve(TRAIN_COLOUR, lambda point: point.train_loss),
        curve(HELD_OUT_COLOUR, lambda point: point.held_out_loss),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"
