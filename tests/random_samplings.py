"""Every kind of sampling that can stand on the wire."""

from hypothesis import strategies as st

from cluster_core.logprobs import TokenLogprobs
from cluster_core.sampling import Grammar, GrammarKind, Sampling, ThinkingLimit

U32 = st.integers(0, 2**32 - 1)
_some_tokens = st.lists(U32, min_size=1, max_size=4).map(tuple)
_biases = st.dictionaries(U32, st.floats(-100, 100), max_size=4).map(lambda found: tuple(sorted(found.items())))

samplings = st.builds(
    Sampling,
    temperature=st.floats(0, 2),
    top_p=st.floats(0, 1, exclude_min=True),
    top_k=U32,
    seed=st.integers(-(2**63), 2**63 - 1),
    max_tokens=st.integers(1, 2**20),
    stop_token_ids=st.frozensets(U32, max_size=5),
    answer_start=U32,
    min_p=st.floats(0, 1, exclude_max=True),
    typical_p=st.floats(0, 1, exclude_min=True),
    repetition_penalty=st.floats(0, 2, exclude_min=True),
    presence_penalty=st.floats(-2, 2),
    frequency_penalty=st.floats(-2, 2),
    logit_bias=_biases,
    allowed_token_ids=st.frozensets(U32, max_size=5),
    banned_sequences=st.lists(_some_tokens, max_size=3).map(tuple),
    forced_token_ids=st.lists(U32, max_size=4).map(tuple),
    min_tokens=U32,
    thinking=st.none() | st.builds(ThinkingLimit, start=st.just(()) | _some_tokens, end=_some_tokens, max_tokens=U32),
    grammar=st.none() | st.builds(Grammar, kind=st.sampled_from(GrammarKind), text=st.text(max_size=20)),
    logprobs=st.none() | st.integers(0, 20),
    prompt_logprobs=st.none() | st.integers(0, 5),
)
token_logprobs = st.builds(
    TokenLogprobs,
    token_id=U32,
    logprob=st.floats(-1e6, 0, width=32),
    rank=st.integers(1, 2**32 - 1),
    top=st.lists(st.tuples(U32, st.floats(-1e6, 0, width=32)), max_size=4).map(tuple),
)
