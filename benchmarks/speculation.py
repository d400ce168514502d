"""How fast answers are written with guesses, against the same answers without, on one decode worker's scheduler.

The bench model in bfloat16 on two threads. For look-ups what the answers say is forced, token for token, so that it is
known which guesses come true, while every step computes what it would compute for any answer. The draft model is one
layer of the bench model; with its output mixed up it is never right. Time runs from the moment when all prompts
have been read to the last token, planning included. A worker's scheduler lives through all rounds, as it does when it
serves; the first round is not counted.
"""

import json
import random
import shutil
import tempfile
import time
from collections.abc import Awaitable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from benchmarks import report
from benchmarks.bench_model import make_bench_model
from cluster_core.hash_chain import root_hash
from cluster_core.identity import Attempt, RequestId
from cluster_core.sampling import Sampling
from cluster_rpc.order_checks import Capacity
from cluster_rpc.worker_messages import PrefillOrigin, WorkOrder
from decode_worker.answer import Stage
from decode_worker.draft_guesses import DraftGuesses
from decode_worker.guess_source import GuessSource, LookupGuesses
from decode_worker.scheduler import DecodeScheduler, SchedulerParts
from decode_worker.settings import DecodeSettings
from decode_worker.speculation import Speculation
from inference_engine.block_pool import BlockPool
from inference_engine.draft_model import DraftingEngine
from inference_engine.engine import Engine
from inference_engine.engine_loop import Stepping
from inference_engine.model_folder import open_model_folder
from inference_engine.settings import EngineSettings, ModelSettings
from inference_engine.warm_up import warm_up
from kv_transfer.import_job import Imported, ImportJob

THREADS = 2
BLOCKS = 1024
PROMPT_TOKENS = 192
ANSWER_TOKENS = 192
EDITED_EVERY = 32
"""An edit-like answer is its prompt, with one token of so many changed."""
ROUNDS, ROUNDS_ALONE = 5, 13
"""One answer's steps are short, and a shared machine's noise shows in them."""
CASES = (
    "speculation.edit.batch1",
    "speculation.edit.batch8",
    "speculation.random.batch1",
    "speculation.random.batch8",
    "speculation.random.batch32",
    "speculation.draft.batch1",
    "speculation.draft.batch8",
    "speculation.wrong_draft.batch1",
    "speculation.wrong_draft.batch8",
)


class Worker:
    """A decode scheduler over the engine, stepped here."""

    def __init__(self, engine: Engine, source: GuessSource | None = None, draft: Engine | None = None) -> None:
        self._stepping: Stepping = engine if draft is None else DraftingEngine(engine, draft)
        self._root = root_hash(engine.identity.root_hash_seed(engine.layout), "")
        settings = DecodeSettings(total_blocks=BLOCKS)
        capacity = Capacity(model=engine.identity, layout=engine.layout, total_blocks=BLOCKS, max_waiting=64)
        parts = SchedulerParts(
            pool=BlockPool(BLOCKS),
            capacity=capacity,
            source=_nothing_to_import,
            settings=settings,
            copy_block=engine.memory.copy_block,
            speculation=Speculation(source),
        )
        self._scheduler = DecodeScheduler(parts, on_change=lambda: None)

    def write(self, requests: Sequence[tuple[list[int], Sampling]]) -> float:
        """Return tokens a second."""
        answers = [
            self._scheduler.submit(
                WorkOrder(
                    request_id=RequestId(f"r{place}"),
                    attempt=Attempt(1),
                    prompt_token_ids=tuple(prompt),
                    sampling=sampling,
                    root_hash=self._root,
                    origin=None,
                )
            )
            for place, (prompt, sampling) in enumerate(requests)
        ]
        while not all(answer.written for answer in answers):
            self._step()
        before = sum(answer.written for answer in answers)
        started = time.perf_counter()
        while any(answer.stage is not Stage.ENDED for answer in answers):
            self._step()
        return (sum(answer.written for answer in answers) - before) / (time.perf_counter() - started)

    def _step(self) -> None:
        plan = self._scheduler.next_step()
        assert plan is not None
        self._scheduler.step_done(self._stepping.step(plan))


def _nothing_to_import(origin: PrefillOrigin, job: ImportJob) -> Awaitable[Imported]:
    raise AssertionError((origin, job))


def requests_of(kind: str, batch: int) -> list[tuple[list[int], Sampling]]:
    """Return prompts and samplings: answers that edit their prompt, or that have nothing to do with it."""
    draw = random.Random(batch)  # noqa: S311  # a benchmark
    made = []
    for seed in range(batch):
        prompt = draw.choices(range(300, 8000), k=PROMPT_TOKENS)
        answer = draw.choices(range(300, 8000), k=ANSWER_TOKENS)
        if kind == "edit":
            answer = [answer[place] if place % EDITED_EVERY == 0 else old for place, old in enumerate(prompt)]
        sampling = Sampling(
            temperature=0.0,
            top_p=1.0,
            top_k=0,
            seed=seed,
            max_tokens=ANSWER_TOKENS,
            stop_token_ids=frozenset(),
            answer_start=PROMPT_TOKENS,
        )
        forced = kind in {"edit", "random"}  # a draft model would be told the answer too
        made.append((prompt, replace(sampling, forced_token_ids=tuple(answer)) if forced else sampling))
    return made


def measure(folder: Path, rounds: int) -> list[report.Row]:
    """Return a row for each of `CASES`."""
    torch.set_num_threads(THREADS)
    engine = _load(folder)
    drafts = {kind: _load(make_draft(folder, mixed_up=kind == "wrong_draft")) for kind in ("draft", "wrong_draft")}
    rows = []
    for case in CASES:
        kind, batch = case.split(".")[1], int(case.rpartition("batch")[2])
        requests = requests_of(kind, batch)
        guessing = Worker(engine, LookupGuesses())
        if (draft := drafts.get(kind)) is not None:
            source = DraftGuesses(identity=draft.identity, layout=draft.layout, total_blocks=BLOCKS, chunk_tokens=128)
            guessing = Worker(engine, source, draft)
        measurements = [partial(guessing.write, requests), partial(Worker(engine).write, requests)]
        value, plain = report.interleaved(case, rounds if batch > 1 or rounds == 1 else ROUNDS_ALONE, measurements)
        rows.append(report.higher_is_better(case, value, "tokens/s", "without guesses", plain))
    return rows


def make_draft(folder: Path, *, mixed_up: bool) -> Path:
    """Write the bench model's first layer to a folder beside ``folder``, and return that."""
    draft = folder.with_name("wrong_draft" if mixed_up else "draft")
    draft.mkdir(exist_ok=True)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {"num_hidden_layers": 1, "tie_word_embeddings": not mixed_up}
    (draft / "config.json").write_text(json.dumps(config), encoding="utf-8")
    shutil.copy(folder / "tokenizer.json", draft)
    tensors = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if ".layers." not in name or ".layers.0." in name}
    if mixed_up:
        kept["lm_head.weight"] = kept["model.embed_tokens.weight"].roll(1, dims=0).contiguous()
    save_file(kept, draft / "model.safetensors", metadata={"format": "pt"})
    return draft


def _load(folder: Path) -> Engine:
    settings = EngineSettings(dtype="bfloat16", threads=THREADS)
    return warm_up(Engine.load(open_model_folder(ModelSettings(path=str(folder))), settings, BLOCKS))


def main() -> None:
    """Measure and print."""
    options = report.parser(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(make_bench_model(Path(folder) / "bench-82m"), 1 if options.quick else ROUNDS)
    report.show(rows, as_json=options.json)


if __name__ == "__main__":
    main()
