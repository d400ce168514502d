"""Train the demo's model from the running interpreter's standard library: `python -m examples.demo_model.train`.

Writes a Hugging Face folder (weights in bfloat16, tokenizer, configuration) and, beside it, the seed, the recipe, the
loss curve and the losses. The same seed, Python, torch and number of threads give the same weights.
"""

import argparse
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import gettempdir

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import LlamaForCausalLM

from examples.demo_model.corpus import SourceFile, collect, standard_library
from examples.demo_model.model_folder import CONFIG, CONTEXT_TOKENS, new_model, save_model
from examples.demo_model.report import write_report
from examples.demo_model.tokenization import TokenisedText, save_tokenizer, tokenise, train_tokenizer
from examples.demo_model.training import WINDOW_LENGTHS, LossPoint, Training, TrainingSettings, evaluate

CACHE_FOLDER = Path(gettempdir()) / "demo-model-corpus"
STATE_FILE = CACHE_FOLDER / "training-state.pt"


def main() -> None:
    """Parse the options, train, and leave the finished folder."""
    parser = argparse.ArgumentParser(prog="python -m examples.demo_model.train", description=(__doc__ or "").strip())
    parser.add_argument(
        "--seed", type=int, default=2024, help="of the weights and of the windows (default: %(default)s)"
    )
    parser.add_argument("--steps", type=int, default=1500, help="optimiser steps (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder to write (default: this one)")
    parser.add_argument("--resume", action="store_true", help="go on from where the last run was interrupted")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if not options.resume:
        STATE_FILE.unlink(missing_ok=True)
    run(TrainingSettings(seed=options.seed, steps=options.steps), options.out, Console())


def run(settings: TrainingSettings, out: Path, console: Console) -> None:
    """Train with these settings and write everything into `out`, a usable model after every evaluation.

    Goes on from `STATE_FILE` if there is one, and keeps it up to date.
    """
    files = collect(standard_library())
    seen, unseen = [file for file in files if not file.held_out], [file for file in files if file.held_out]
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(seen, CONFIG["vocab_size"])
    save_tokenizer(tokenizer, out, CONTEXT_TOKENS)
    train_text, held_out_text = tokenise(tokenizer, seen, CACHE_FOLDER), tokenise(tokenizer, unseen, CACHE_FOLDER)
    console.print(
        f"{len(files)} files, {len(train_text.token_ids):,} tokens, {len(held_out_text.token_ids):,} held out"
    )

    torch.manual_seed(settings.seed)
    model = new_model(tokenizer.get_vocab_size())
    training = Training(model, settings)
    points, seconds_before = restore(training)
    started = time.monotonic() - seconds_before
    console.print(f"{parameter_count(model):,} parameters, from step {training.step}")
    with training_progress(console) as progress:
        task = progress.add_task("training", total=settings.steps, completed=training.step, losses="")
        for point in training.points(train_text, held_out_text):
            points.append(point)
            save_model(model, out)
            torch.save(training.state() | {"points": points, "seconds": time.monotonic() - started}, STATE_FILE)
            losses = f"train {point.train_loss:.3f}  held out {point.held_out_loss:.3f}"
            progress.update(task, completed=point.step, losses=losses)
            progress.console.print(f"step {point.step:>5}  {losses}  {time.monotonic() - started:.0f} s")

    round_weights(model)
    held_out_loss = evaluate(model, held_out_text)
    save_model(model, out)
    facts = {
        "settings": asdict(settings) | {"window_lengths": WINDOW_LENGTHS},
        "parameters": parameter_count(model),
        "corpus": corpus_facts(seen, train_text) | {"held_out": corpus_facts(unseen, held_out_text)},
        "final_train_loss": round(points[-1].train_loss, 4),
        "final_held_out_loss": round(held_out_loss, 4),
        "tokens_seen": settings.steps * settings.tokens_per_step,
        "wall_time_s": round(time.monotonic() - started),
        "threads": torch.get_num_threads(),
        "python_version": platform.python_version(),
        "torch_version": torch.__version__,
    }
    write_report(out, facts, points)
    STATE_FILE.unlink()
    console.print(f"held-out loss of the rounded weights {held_out_loss:.4f}; written to {out}")


def restore(training: Training) -> tuple[list[LossPoint], float]:
    """Load the interrupted run, if there is one; return its loss points and the seconds it had trained."""
    if not STATE_FILE.exists():
        return [], 0.0
    state = torch.load(STATE_FILE, weights_only=False)  # our own file, written by `run`
    training.load_state(state)
    return state["points"], state["seconds"]


def training_progress(console: Console) -> Progress:
    """Return the bar that shows steps, losses and the time that is left."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[losses]}"))
    return Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console)


@torch.no_grad()
def round_weights(model: LlamaForCausalLM) -> None:
    """Round the weights to bfloat16, as they are shipped; the rotary tables, which are not, keep their precision."""
    for parameter in model.parameters():
        parameter.copy_(parameter.to(torch.bfloat16))


def parameter_count(model: LlamaForCausalLM) -> int:
    """Count the trained numbers; the tied embedding counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


def corpus_facts(files: Sequence[SourceFile], text: TokenisedText) -> dict[str, object]:
    """Return the size of a part of the corpus; the tokens include the chats made from the files."""
    source_bytes = sum(len(file.code.encode()) for file in files)
    return {"files": len(files), "bytes": source_bytes, "tokens": len(text.token_ids)}


if __name__ == "__main__":
    main()
