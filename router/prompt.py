"""A client's request becomes a `PreparedRequest`: checked, tokenised and complete, or a `RequestError` is raised.

After this nothing of the protocol's message is used: the rest of the router and the workers see plain values. Unset
fields have their defaults here and nowhere else.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from cluster_core.errors import ContextTooLong, NotServed
from cluster_core.identity import RequestId
from cluster_core.layout import ModelIdentity
from cluster_core.sampling import Sampling
from cluster_rpc import field_checks
from cluster_rpc.field_checks import require
from cluster_rpc.v1 import generation_pb2 as pb
from router import validation
from router.chat_template import ChatTemplate
from router.fill_in_middle import FillInMiddle
from router.sampling_request import SamplingReader
from router.text_stream import TextOptions
from router.tokenizer import Tokenizer
from router.validation import InputLimits

DEFAULT_MAX_TOKENS = 16
CHARS_PER_TOKEN = 8
"""More than a token of prose or code has: so much text for each token of the context is surely enough to judge by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedRequest:
    """A request that can be served."""

    request_id: RequestId
    prompt_token_ids: tuple[int, ...]
    sampling: Sampling
    """Of the first choice; the others' differ in the seed alone (`cluster_core.sampling.choice_seed`)."""
    text: TextOptions
    cache_salt: str
    priority: int
    seed: int
    """The client's, or the one drawn for it; ``sampling.seed`` is the same."""
    choices: int = 1
    """How many answers are wanted."""
    recover: bool = True
    """Whether it goes on elsewhere when a worker fails it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestPreparer:
    """Prepares requests for one model."""

    tokenizer: Tokenizer
    model: ModelIdentity
    served_name: str
    """The name clients use; the model's own name is understood too."""
    eos_token_ids: frozenset[int]
    chat_template: ChatTemplate | None = None
    limits: InputLimits = field(default_factory=InputLimits)
    fill_in_middle: FillInMiddle = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "fill_in_middle", FillInMiddle(self.tokenizer))

    def prepare(
        self, request: pb.GenerateRequest, new_id: Callable[[], RequestId], new_seed: Callable[[], int]
    ) -> PreparedRequest:
        """Check and tokenise ``request``. Raises `RequestError`.

        A text as long as a long context takes seconds to tokenise: prepare a large request in a thread of its own.
        """
        request_id = field_checks.request_id(request.request_id) if request.request_id else new_id()
        if request.model not in {"", self.served_name, self.model.name}:
            where, reason = "model", f"{validation.quoted(request.model)} is not served here: {self.served_name!r} is"
            raise NotServed(where, reason)
        cache_salt = validation.checked_cache_salt(request.cache_salt, self.limits)
        priority = validation.checked_priority(request.priority, self.limits)
        recover = validation.checked_recovery(request.recovery)
        params = request.sampling_params
        reader = SamplingReader(
            tokenizer=self.tokenizer,
            vocab_size=self.model.vocab_size,
            eos_token_ids=self.eos_token_ids,
            limits=self.limits,
        )
        choices, stop, sampling = reader.choices(params), reader.stop_strings(params), reader.read(params)
        prompt_field, prompt = self._prompt(request)
        seed = params.seed if params.HasField("seed") else new_seed()
        max_tokens = self._max_tokens(params, prompt_field, len(prompt))
        if params.min_tokens > max_tokens:
            reason = f"is {params.min_tokens}: must be at most max_tokens, {max_tokens}"
            field_checks.refuse("sampling_params.min_tokens", reason)
        if len(sampling.forced_token_ids) > max_tokens:
            reason = f"has {len(sampling.forced_token_ids)} ids: at most max_tokens, {max_tokens}, can be written"
            field_checks.refuse("sampling_params.forced_token_ids", reason)
        return PreparedRequest(
            request_id=request_id,
            prompt_token_ids=prompt,
            sampling=replace(
                sampling, seed=seed, max_tokens=max_tokens, min_tokens=params.min_tokens, answer_start=len(prompt)
            ),
            choices=choices,
            text=TextOptions(
                stop=stop,
                include_stop=params.include_stop_str_in_output,
                skip_special=not params.HasField("skip_special_tokens") or params.skip_special_tokens,
                stop_token_ids=sampling.stop_token_ids,
            ),
            cache_salt=cache_salt,
            priority=priority,
            seed=seed,
            recover=recover,
        )

    def _prompt(self, request: pb.GenerateRequest) -> tuple[str, tuple[int, ...]]:
        """Return the field that the prompt came in, and the prompt's tokens, at least one."""
        match request.WhichOneof("input"):
            case "tokenized":
                where, token_ids = "tokenized.input_ids", list(request.tokenized.input_ids)
            case "text":
                where, text = "text", validation.checked_prompt_text(request.text, self.limits)
                token_ids = self._tokenised(text, where, add_special_tokens=True)
            case "chat":
                where = "chat.messages"
                messages = validation.checked_messages(request.chat.messages, self.limits)
                if self.chat_template is None:
                    return field_checks.refuse("chat", "the model has no chat template: send text or tokenized")
                token_ids = self._tokenised(self.chat_template.render(messages), where, add_special_tokens=False)
            case "fim":
                where, fim = "fim", request.fim
                validation.checked_gap(fim, self.limits)
                token_ids = self._filled_in(fim)
            case _:
                return field_checks.refuse("input", "is missing: send one of tokenized, text, chat and fim")
        require(bool(token_ids), where, "is empty: the prompt must have at least one token")
        return where, validation.checked_token_ids(token_ids, where, self.model.vocab_size)

    def _filled_in(self, fim: pb.FimInput) -> list[int]:
        """Return the prompt for a gap. Texts that are hopelessly long are refused as `_tokenised` does."""
        for name in ("prefix", "suffix"):
            self._refuse_if_hopeless(getattr(fim, name), f"fim.{name}")
        return self.fill_in_middle.prompt(fim.prefix, fim.suffix, prefix_first=fim.prefix_first)

    def _tokenised(self, text: str, where: str, *, add_special_tokens: bool) -> list[int]:
        """Return the text's tokens. Raises `ContextTooLong` at once for a text that is far too long."""
        self._refuse_if_hopeless(text, where)
        return self.tokenizer.encode(text, add_special_tokens=add_special_tokens)

    def _refuse_if_hopeless(self, text: str, where: str) -> None:
        """Refuse a text that is far too long by its beginning, in a fraction of the time that all of it would take.

        A cut can change the tokens around it, hence the quarter above the context.
        """
        context = self.model.max_context_tokens
        beginning = CHARS_PER_TOKEN * context
        while beginning < len(text):
            if len(self.tokenizer.encode(text[:beginning], add_special_tokens=False)) > context + context // 4:
                raise ContextTooLong(
                    where, f"is far longer than the {context - 1} tokens that leave room for an answer"
                )
            beginning *= 4

    def _max_tokens(self, params: pb.SamplingParams, prompt_field: str, prompt_tokens: int) -> int:
        """Return how many tokens may be written: what was asked for, or the default as far as there is room."""
        context = self.model.max_context_tokens
        room = context - prompt_tokens
        if room < 1:
            reason = (
                f"has {prompt_tokens} tokens: at most {context - 1} leave room for an answer in the model's context"
            )
            raise ContextTooLong(prompt_field, reason)
        if not params.HasField("max_tokens"):
            return min(DEFAULT_MAX_TOKENS, room)
        where = "sampling_params.max_tokens"
        require(params.max_tokens > 0, where, "is 0: must be at least 1")
        if params.max_tokens > room:
            reason = (
                f"is {params.max_tokens}: a prompt of {prompt_tokens} tokens leaves room for {room} "
                f"in the model's context of {context}"
            )
            raise ContextTooLong(where, reason)
        return params.max_tokens
