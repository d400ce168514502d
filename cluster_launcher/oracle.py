"""One engine in one process: what every answer of the cluster is compared with."""

from collections.abc import Sequence
from dataclasses import dataclass

from cluster_core.sampling import Sampling
from cluster_launcher.configuration import Configuration
from inference_engine.model_folder import open_model_folder
from router.tokenizer import load_tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A greedy request that the cluster has answered."""

    prompt: str
    max_tokens: int
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Where an answer first departs from the oracle's."""

    request: int
    token_index: int
    expected: tuple[int, ...]
    """The oracle's tokens from there on."""
    answered: tuple[int, ...]


def first_difference(configuration: Configuration, asked: Sequence[Asked]) -> Difference | None:
    """Answer every request again with an engine of this process. None: all tokens are the same."""
    from inference_engine.engine import Engine  # noqa: PLC0415 - brings torch, which only the demo needs here
    from inference_engine.single import generate  # noqa: PLC0415 - as above

    folder = open_model_folder(configuration.model)
    tokenizer = load_tokenizer(folder.path)
    prompts = [tokenizer.encode(request.prompt, add_special_tokens=True) for request in asked]
    longest = max(len(prompt) + request.max_tokens for prompt, request in zip(prompts, asked, strict=True))
    blocks = -(-longest // configuration.engine.block_size_tokens)
    engine = Engine.load(folder, configuration.engine, blocks)
    for number, (prompt, request) in enumerate(zip(prompts, asked, strict=True)):
        sampling = Sampling(
            temperature=0.0,
            top_p=1.0,
            top_k=0,
            seed=0,
            max_tokens=request.max_tokens,
            stop_token_ids=frozenset(engine.eos_token_ids),
        )
        expected = tuple(generate(engine, prompt, sampling))
        if expected != request.token_ids:
            pairs = zip(expected, request.token_ids, strict=False)
            same = next((index for index, (one, other) in enumerate(pairs) if one != other), None)
            place = min(len(expected), len(request.token_ids)) if same is None else same
            return Difference(
                request=number, token_index=place, expected=expected[place:], answered=request.token_ids[place:]
            )
    return None
