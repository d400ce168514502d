"""A real model whose tokens are guessed ahead, by look-up and by draft models: its answers equal a single engine's."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from cluster_core.errors import ModelFolderError
from cluster_core.hash_chain import root_hash
from cluster_core.sampling import Grammar, GrammarKind, Sampling
from cluster_core.workers import WorkerLoad
from cluster_rpc.order_checks import Capacity
from decode_worker.draft_guesses import DraftGuesses
from decode_worker.guess_source import GuessSource, LookupGuesses
from decode_worker.scheduler import DecodeScheduler, SchedulerParts
from decode_worker.settings import DecodeSettings
from decode_worker.speculation import Speculation
from inference_engine.block_pool import BlockPool
from inference_engine.draft_folder import open_draft_folder
from inference_engine.draft_model import DraftingEngine
from inference_engine.engine import Engine
from inference_engine.grammar_masks import GrammarMasks
from inference_engine.model_folder import open_model_folder
from inference_engine.settings import EngineSettings, ModelSettings
from inference_engine.single import generate
from tests.decode_worker.bench import Bench
from tests.decode_worker.test_speculation import Eager
from tests.model_fixtures import EOS_TOKEN_ID, VOCABULARY, make_model, prompt_tokens
from tests.worker_orders import collect, make_order

BLOCKS = 64
SETTINGS = DecodeSettings(token_budget=128, chunk_tokens=32, max_running=8, total_blocks=BLOCKS)
GREEDY = Sampling(temperature=0.0, top_p=1.0, top_k=0, seed=5, max_tokens=40, stop_token_ids=frozenset({EOS_TOKEN_ID}))
SAMPLED = replace(GREEDY, temperature=0.8, top_p=0.9, top_k=40)
PENALISED = replace(SAMPLED, repetition_penalty=1.2, frequency_penalty=0.4, min_tokens=8, logit_bias=((65, 2.0),))
DIGITS = replace(SAMPLED, grammar=Grammar(kind=GrammarKind.REGEX, text="([0-9]{3}-)+x"))
WAYS = {"greedy": GREEDY, "sampled": SAMPLED, "penalised": PENALISED, "grammar": DIGITS}
SOURCES = ("lookup", "itself", "other", "small pool")


class Engines:
    """A model, itself again as its own draft model, and another one."""

    def __init__(self, folder: Path) -> None:
        torch.set_num_threads(1)
        self.model = _load(make_model(folder / "model", "llama"))
        self.drafts = {
            "itself": _load(folder / "model"),
            "small pool": _load(folder / "model"),
            "other": _load(make_model(folder / "other", "qwen3", 1, num_hidden_layers=1)),
        }
        masks = GrammarMasks(folder / "model", VOCABULARY, frozenset({EOS_TOKEN_ID}))
        for engine in (self.model, *self.drafts.values()):
            engine.grammars = masks

    def close(self) -> None:
        for engine in (self.model, *self.drafts.values()):
            engine.close()


def _load(path: Path) -> Engine:
    return Engine.load(open_model_folder(ModelSettings(path=str(path))), EngineSettings(threads=1), BLOCKS)


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    made = Engines(tmp_path_factory.mktemp("speculation"))
    yield made
    made.close()


class ModelBench:
    """A decode scheduler over the model, stepped by hand, with guesses from one of ``SOURCES``."""

    def __init__(self, engines: Engines, source: str, total_blocks: int = BLOCKS) -> None:
        self.engine: Engine | DraftingEngine[object] = engines.model
        self.source: GuessSource = LookupGuesses()
        if source != "lookup":
            draft = engines.drafts[source]
            self.engine = DraftingEngine(engines.model, draft)
            self.source = DraftGuesses(
                identity=draft.identity,
                layout=draft.layout,
                total_blocks=5 if source == "small pool" else BLOCKS,
                chunk_tokens=32,
            )
        self.pool = BlockPool(total_blocks)
        self.root = root_hash(engines.model.identity.root_hash_seed(engines.model.layout), "")
        capacity = Capacity(
            model=engines.model.identity, layout=engines.model.layout, total_blocks=total_blocks, max_waiting=99
        )
        parts = SchedulerParts(
            pool=self.pool,
            capacity=capacity,
            source=Bench().source,
            settings=SETTINGS,
            copy_block=engines.model.memory.copy_block,
            speculation=Speculation(self.source, Eager(), most=5),
        )
        self.scheduler = DecodeScheduler(parts, on_change=lambda: None)

    async def answers(self, prompts: Sequence[Sequence[int]], sampling: Callable[[int], Sampling]) -> list[list[int]]:
        submitted = [
            self.scheduler.submit(
                replace(
                    make_order(f"r{place}", prompt, sampling=sampling(place), max_tokens=sampling(place).max_tokens),
                    root_hash=self.root,
                )
            )
            for place, prompt in enumerate(prompts)
        ]
        while (plan := self.scheduler.next_step()) is not None:
            self.scheduler.step_done(self.engine.step(plan))
        self.pool.audit()
        assert self.pool.counts().held == 0
        assert self.source.held_blocks == 0
        return [await collect(answer) for answer in submitted]

    @property
    def load(self) -> WorkerLoad:
        return self.scheduler.load()


def answer_prompts(count: int) -> list[list[int]]:
    """Return prompts that hold parts twice, of several lengths."""
    parts = [prompt_tokens(9 + 7 * place, place) for place in range(count)]
    return [[*part, 10, *part, 10, *part[:4]] for part in parts]


def _the_same(sampling: Sampling, place: int) -> Sampling:
    assert place == 0
    return sampling


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("way", WAYS)
async def test_answers_equal_a_single_engines(engines: Engines, way: str, source: str) -> None:
    prompts = answer_prompts(4)

    def sampling(place: int) -> Sampling:
        return replace(WAYS[way], seed=place, answer_start=len(prompts[place]))

    expected = [generate(engines.model, prompt, sampling(place)) for place, prompt in enumerate(prompts)]
    bench = ModelBench(engines, source)
    assert await bench.answers(prompts, sampling) == expected
    for place, prompt in enumerate(prompts):
        own = partial(_the_same, sampling(place))
        assert await ModelBench(engines, source).answers([prompt], own) == [expected[place]]


@pytest.mark.parametrize("source", SOURCES)
async def test_answers_that_are_preempted_equal_a_single_engines(engines: Engines, source: str) -> None:
    prompts = answer_prompts(4)
    expected = [generate(engines.model, prompt, replace(SAMPLED, seed=3)) for prompt in prompts]
    bench = ModelBench(engines, source, total_blocks=14)
    assert await bench.answers(prompts, lambda _: replace(SAMPLED, seed=3)) == expected
    assert bench.load.preemptions > 0


@pytest.mark.parametrize("way", ["greedy", "sampled", "penalised", "grammar"])
async def test_a_model_that_drafts_for_itself_is_always_right(engines: Engines, way: str) -> None:
    prompts = answer_prompts(3)
    bench = ModelBench(engines, "itself")
    written = await bench.answers(prompts, lambda place: replace(WAYS[way], answer_start=len(prompts[place])))
    load = bench.load
    ends = sum(answer[-1] == EOS_TOKEN_ID for answer in written)
    assert load.guessed_tokens > 0
    assert load.accepted_guesses >= load.guessed_tokens - 5 * ends, "but for guesses after the end"
    assert load.draft_s > 0.0


def test_a_draft_model_of_another_vocabulary_is_refused(tmp_path: Path) -> None:
    settings = ModelSettings(path=str(make_model(tmp_path / "model", "llama")))
    served = open_model_folder(settings)
    assert open_draft_folder(served, settings, settings.path).identity == served.identity
    larger = make_model(tmp_path / "larger", "llama", vocab_size=VOCABULARY + 8)
    with pytest.raises(ModelFolderError, match=r"^speculation\.draft_model: .* has 328 tokens, the model 320; "):
        open_draft_folder(served, settings, str(larger))
    other = make_model(tmp_path / "other", "llama")
    file = other / "tokenizer.json"
    file.write_text(file.read_text(encoding="utf-8").replace("unused299", "used"), encoding="utf-8")
    with pytest.raises(ModelFolderError, match=r"^speculation\.draft_model: the tokens of .* are not the model's"):
        open_draft_folder(served, settings, str(other))
