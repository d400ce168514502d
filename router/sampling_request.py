"""What a client writes in ``sampling_params``, checked, as the `Sampling` that the workers get.

Strings become token ids here, for the workers have no tokenizer. What depends on the prompt, the lengths, is for
`router.prompt` to add.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from cluster_core.sampling import Sampling, ThinkingLimit
from cluster_rpc.field_checks import refuse, require
from cluster_rpc.v1 import generation_pb2 as pb
from router.grammar_request import read_grammar
from router.tokenizer import Tokenizer
from router.validation import NUL, InputLimits, checked_token_ids, quoted
from router.written_numbers import count_between, number_above_zero, number_between, written_number

THINKING_START = "<think>"
THINKING_END = "</think>"

_PREFIX = "sampling_params."


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingReader:
    """Reads the parameters of requests for one model."""

    tokenizer: Tokenizer
    vocab_size: int
    eos_token_ids: frozenset[int]
    limits: InputLimits

    def read(self, params: pb.SamplingParams) -> Sampling:
        """Return the sampling but for seed, lengths and the answer's start. Raises `RequestError`."""
        limits = self.limits
        own_stops = self._token_ids(params.stop_token_ids, "stop_token_ids", limits.stop_token_ids)
        return Sampling(
            temperature=_temperature(params, limits),
            top_p=number_above_zero(params.top_p, 1, f"{_PREFIX}top_p"),
            top_k=params.top_k if params.top_k < self.vocab_size else 0,
            seed=0,
            max_tokens=1,
            stop_token_ids=frozenset(own_stops if params.ignore_eos else (*own_stops, *self.eos_token_ids)),
            min_p=_min_p(params.min_p),
            typical_p=number_above_zero(params.typical_p, 1, f"{_PREFIX}typical_p"),
            repetition_penalty=number_above_zero(params.repetition_penalty, 2, f"{_PREFIX}repetition_penalty"),
            presence_penalty=number_between(params.presence_penalty, -2, 2, f"{_PREFIX}presence_penalty"),
            frequency_penalty=number_between(params.frequency_penalty, -2, 2, f"{_PREFIX}frequency_penalty"),
            logit_bias=self._biases(params),
            allowed_token_ids=frozenset(
                self._token_ids(params.allowed_token_ids, "allowed_token_ids", limits.allowed_token_ids)
            ),
            banned_sequences=self._bad_words(params),
            forced_token_ids=self._token_ids(params.forced_token_ids, "forced_token_ids", limits.forced_token_ids),
            thinking=self._thinking(params),
            grammar=read_grammar(params, limits),
            logprobs=_alternatives(params, "logprobs", limits.logprobs),
            prompt_logprobs=_alternatives(params, "prompt_logprobs", limits.prompt_logprobs),
        )

    def choices(self, params: pb.SamplingParams) -> int:
        """Return how many answers are wanted."""
        return count_between(params.n or 1, 1, self.limits.choices, f"{_PREFIX}n")

    def stop_strings(self, params: pb.SamplingParams) -> tuple[str, ...]:
        """Return the stop strings, each once."""
        limits, field = self.limits, f"{_PREFIX}stop"
        count = len(params.stop)
        require(count <= limits.stop_strings, field, f"has {count} strings: send at most {limits.stop_strings}")
        for place, stop in enumerate(params.stop):
            size = len(stop.encode())
            reason = f"is {size} bytes long: must be 1 to {limits.stop_string_bytes}"
            require(0 < size <= limits.stop_string_bytes, f"{field}[{place}]", reason)
        total = sum(len(stop.encode()) for stop in params.stop)
        reason = f"has {total} bytes: send at most {limits.stop_strings_bytes}"
        require(total <= limits.stop_strings_bytes, field, reason)
        return tuple(dict.fromkeys(params.stop))

    def _token_ids(self, token_ids: Sequence[int], name: str, limit: int) -> tuple[int, ...]:
        field, count = f"{_PREFIX}{name}", len(token_ids)
        require(count <= limit, field, f"has {count} ids: send at most {limit}")
        return checked_token_ids(token_ids, field, self.vocab_size)

    def _biases(self, params: pb.SamplingParams) -> tuple[tuple[int, float], ...]:
        field, limit, bound = f"{_PREFIX}logit_bias", self.limits.logit_biases, self.limits.logit_bias
        count = len(params.logit_bias)
        require(count <= limit, field, f"has {count} entries: send at most {limit}")
        biases = []
        for token_id, bias in sorted(params.logit_bias.items()):
            where = f"{field}[{token_id}]"
            require(token_id >= 0, where, "token ids are not negative")
            (known,) = checked_token_ids([token_id], field, self.vocab_size)
            biases.append((known, number_between(bias, -bound, bound, where)))
        return tuple(biases)

    def _bad_words(self, params: pb.SamplingParams) -> tuple[tuple[int, ...], ...]:
        """Return the words as they stand at a text's start and after a space, which are often other tokens."""
        limits, field = self.limits, f"{_PREFIX}bad_words"
        count = len(params.bad_words)
        require(count <= limits.bad_words, field, f"has {count} words: send at most {limits.bad_words}")
        sequences: dict[tuple[int, ...], None] = {}
        for place, word in enumerate(params.bad_words):
            where, size = f"{field}[{place}]", len(word.encode())
            require(0 < size <= limits.bad_word_bytes, where, f"is {size} bytes long: 1 to {limits.bad_word_bytes}")
            bare = word.lstrip(" ")
            require(bool(bare), where, "is blank: name a word")
            at_start, after_space = (
                tuple(self.tokenizer.encode(text, add_special_tokens=False)) for text in (bare, f" {bare}")
            )
            require(bool(at_start), where, f"is {quoted(word)}, of which the tokenizer knows nothing")
            sequences[at_start] = None
            if after_space[-len(at_start) :] != at_start:
                sequences[after_space] = None
        return tuple(sequences)

    def _thinking(self, params: pb.SamplingParams) -> ThinkingLimit | None:
        if not params.HasField("max_thinking_tokens"):
            for name in ("thinking_start", "thinking_end"):
                require(not params.HasField(name), f"{_PREFIX}{name}", "is of no use without max_thinking_tokens")
            return None
        start = self._marker(params, "thinking_start", THINKING_START)
        end = self._marker(params, "thinking_end", THINKING_END)
        require(bool(end), f"{_PREFIX}thinking_end", "is empty: name the text that ends the thinking")
        return ThinkingLimit(start=start, end=end, max_tokens=params.max_thinking_tokens)

    def _marker(self, params: pb.SamplingParams, name: str, default: str) -> tuple[int, ...]:
        """Return the tokens of a text that begins or ends the thinking: a token of its own, if there is one."""
        field = f"{_PREFIX}{name}"
        text = getattr(params, name) if params.HasField(name) else default
        size, most = len(text.encode()), self.limits.stop_string_bytes
        require(size <= most and NUL not in text, field, f"is {size} bytes long: at most {most}, and no NUL")
        own = self.tokenizer.token_id(text)
        if own is not None:
            return (own,)
        if not params.HasField(name):
            refuse(field, f"the model's tokenizer has no token {default}: name the text that it uses instead")
        return checked_token_ids(self.tokenizer.encode(text, add_special_tokens=False), field, self.vocab_size)


def _temperature(params: pb.SamplingParams, limits: InputLimits) -> float:
    if not params.HasField("temperature"):
        return 1.0
    value = written_number(params.temperature)
    reason = f"is {value}: must be 0 (greedy) to {limits.temperature:g}"
    require(0 <= value <= limits.temperature, f"{_PREFIX}temperature", reason)
    return value


def _min_p(value: float) -> float:
    number = written_number(value)
    require(0 <= number < 1, f"{_PREFIX}min_p", f"is {number}: must be at least 0 and below 1")
    return number


def _alternatives(params: pb.SamplingParams, name: str, most: int) -> int | None:
    if not params.HasField(name):
        return None
    return count_between(getattr(params, name), 0, most, f"{_PREFIX}{name}")
