"""From a served model to its engine. Here alone is decided whether a worker needs torch."""

from collections.abc import Callable
from typing import Any, Protocol

from cluster_core.layout import KvLayout, ModelIdentity
from inference_engine.draft_model import DraftingEngine
from inference_engine.engine_loop import Stepping
from inference_engine.grammar_preparer import GrammarPreparer
from inference_engine.hash_lm import HashEngine
from inference_engine.hash_model import HashModel
from inference_engine.served_model import ServedModel
from inference_engine.settings import EngineSettings


class BlockBytes(Protocol):
    """The memory of an engine."""

    @property
    def block_bytes(self) -> int:
        """Bytes of one block."""
        ...

    @property
    def rows(self) -> Any:
        """All blocks as a matrix of bytes, a row for each: an array, on CUDA a tensor."""
        ...

    def buffer(self, index: int) -> Any:
        """Return the contiguous bytes of a block, to be read and written in place; on CUDA a tensor of bytes."""
        ...

    def clear_unused(self, index: int, tokens: int) -> None:
        """Zero the slots of a block from ``tokens`` on."""
        ...

    def copy_block(self, source: int, target: int) -> None:
        """Make block ``target`` hold what block ``source`` holds."""
        ...


class ServingEngine(Stepping, Protocol):
    """What a worker needs of an engine beside its steps."""

    @property
    def grammars(self) -> GrammarPreparer:
        """The grammars over the model's tokens."""
        ...

    @property
    def identity(self) -> ModelIdentity:
        """The model."""
        ...

    @property
    def layout(self) -> KvLayout:
        """The shape of a block."""
        ...

    @property
    def memory(self) -> BlockBytes:
        """The blocks."""
        ...


class LoadedEngine(ServingEngine, Protocol):
    """`inference_engine.engine.Engine` or `inference_engine.hash_lm.HashEngine`."""

    def prepare_decode(self, sequences: int) -> None:
        """Do now what the first decode steps of up to so many sequences would wait for."""
        ...


def engine_loader(model: ServedModel, settings: EngineSettings, total_blocks: int) -> Callable[[], LoadedEngine]:
    """Return what loads the engine and warms it up; it raises as `Engine.load`. Imports what that takes now."""
    if isinstance(model, HashModel):
        return lambda: HashEngine(model, total_blocks)
    from inference_engine.engine import Engine  # noqa: PLC0415  # torch, which hashes do without
    from inference_engine.warm_up import warm_up  # noqa: PLC0415  # as above

    return lambda: warm_up(Engine.load(model, settings, total_blocks))


def with_draft(engine: LoadedEngine, draft: LoadedEngine) -> DraftingEngine[BlockBytes]:
    """Give an engine a smaller one that guesses, both from folders. What compiles a grammar is then one for both."""
    from inference_engine.engine import Engine  # noqa: PLC0415  # as above

    assert isinstance(engine, Engine), "no model can guess hashes"
    assert isinstance(draft, Engine), "hashes guess for no model"
    draft.grammars = engine.grammars
    return DraftingEngine(engine, draft)
