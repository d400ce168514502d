"""What a worker needs of the grammars before a step does."""

from typing import Protocol

from cluster_core.sampling import Grammar


class GrammarPreparer(Protocol):
    """`inference_engine.grammar_masks.GrammarMasks`, without its masks."""

    async def prepare(self, grammar: Grammar) -> None:
        """Compile the grammar, unless that is done. To be called before its request is scheduled.

        Raises `InvalidField` for one that cannot be served, `ModelFolderError` where the model serves none.
        """
        ...
