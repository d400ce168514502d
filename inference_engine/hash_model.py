"""HashLM, the model: what its KV is and what its next token is, as pure functions of the tokens.

A model that nobody would want to talk to, and whose answers nevertheless prove something: they depend on every byte of
KV. One flipped bit, a stale, torn, shifted or swapped block, or a block of another prompt changes the next token, and
with it all that follow.

* The **KV** of a token is a hash of the whole KV of the token before it and of the token itself: BLAKE2b, drawn out by
  SHAKE-128 where it must be longer. So it depends on the seed and on all tokens up to there, and an engine can go on
  from the KV in its blocks, knowing nothing of the tokens that they stand for: from wrong KV it makes wrong KV, as a
  model does.
* The **next token** is a hash of the KV of all tokens before it, block after block, each as it lies in memory, of the
  last one the slots that are filled. It is read afresh for every draw: 128 bits of XXH3, made a token id by BLAKE2b;
  where the request samples, together with the request's seed and the position. All tokens are equally likely.

A wrong byte goes unnoticed in one token with a chance of one in ``vocab_size``, and in the following ones too with that
chance each. What goes unnoticed always: the same tokens' KV, made under another cache salt, for a model knows no salts.

`hash_answer` answers without any block, from the definition: the oracle. The engine is `inference_engine.hash_lm`.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import xxhash

from cluster_core.errors import InvalidField, SettingsError
from cluster_core.layout import KvLayout, ModelIdentity
from cluster_core.sampling import Sampling
from inference_engine.settings import HASH, EngineSettings, HashModelSettings, ModelSettings

LONGEST_CONTEXT = 1 << 20

_WORD = (1 << 64) - 1
_FREE = Sampling(temperature=1.0, top_p=1.0, top_k=0, seed=0, max_tokens=1, stop_token_ids=frozenset())
_CUTS = ("top_p", "top_k", "min_p", "typical_p")
_NO_CUTS = (1.0, 0, 0.0, 1.0)
_LOGIT_FIELDS = {
    **{name: name for name in _CUTS},
    "repetition_penalty": "repetition_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "logit_bias": "logit_bias",
    "allowed_token_ids": "allowed_token_ids",
    "banned_sequences": "bad_words",
    "forced_token_ids": "forced_token_ids",
    "thinking": "max_thinking_tokens",
    "grammar": "grammar",
    "logprobs": "logprobs",
    "prompt_logprobs": "prompt_logprobs",
    "min_tokens": "min_tokens",  # the last: without a stop token it asks for nothing
}
"""What needs logits, with the names that it has in a request."""

NEEDS_LOGITS = "the hash model has no logits: it answers greedily or by a seed, with stop tokens, and no more"


@dataclass(frozen=True, slots=True, kw_only=True)
class HashModel:
    """A model that is made of settings alone."""

    settings: HashModelSettings
    identity: ModelIdentity
    layout: KvLayout
    eos_token_ids: frozenset[int]

    @property
    def root_kv(self) -> bytes:
        """What stands for the KV of the token before the first."""
        return hashlib.shake_128(f"baton-hash-kv-1|{self.settings.seed}".encode()).digest(self.layout.token_bytes)

    def kv_after(self, previous: bytes, token_ids: Iterable[int]) -> bytes:
        """Return the KV of each of ``token_ids``, joined, ``previous`` being the KV of the token before them.

        A token's is ``[layer, k/v, kv_head, head_dim]``.
        """
        size = self.layout.token_bytes
        digest_size = min(size, hashlib.blake2b.MAX_DIGEST_SIZE)
        made = []
        for token_id in token_ids:
            text = previous + token_id.to_bytes(4, "little")
            previous = hashlib.blake2b(text, digest_size=digest_size).digest()
            if digest_size < size:
                previous = hashlib.shake_128(previous).digest(size)
            made.append(previous)
        return b"".join(made)

    def in_blocks(self, kv: bytes) -> bytes:
        """Return the KV of consecutive tokens as it lies in memory: full blocks, or less than one of them."""
        if not kv:
            return b""
        size = self.layout.token_bytes
        slots = min(self.layout.block_size_tokens, len(kv) // size)
        heads = self.layout.layers * 2 * self.layout.kv_heads
        tokens = np.frombuffer(kv, dtype=np.uint8).reshape(-1, slots, heads, size // heads)
        return tokens.swapaxes(1, 2).tobytes()

    def draw(self, kv_digest: bytes, position: int, sampling: Sampling, seed: int) -> int:
        """Return the token at ``position``; ``kv_digest`` is of the KV of all tokens before it (`digest_of_kv`)."""
        if sampling.temperature > 0:
            kv_digest += (seed & _WORD).to_bytes(8, "little") + position.to_bytes(8, "little")
        number = int.from_bytes(hashlib.blake2b(kv_digest, digest_size=16).digest(), "little")
        return number % self.identity.vocab_size


def digest_of_kv(parts: Iterable[memoryview | bytes]) -> bytes:
    """Return the digest of KV that comes in parts."""
    digest = xxhash.xxh3_128()
    for part in parts:
        digest.update(part)
    made: bytes = digest.digest()
    return made


def make_hash_model(model: ModelSettings, shape: HashModelSettings, engine: EngineSettings) -> HashModel:
    """Build the model. Raises `SettingsError` for what it cannot be served with."""
    if engine.device != "cpu":
        message = f"engine.device: the hash model computes on the CPU, not on {engine.device}; right is cpu"
        raise SettingsError(message)
    if model.max_context_tokens > LONGEST_CONTEXT:
        message = f"model.max_context_tokens: the hash model reads {LONGEST_CONTEXT} tokens at most"
        raise SettingsError(message)
    answers = f"baton-hash-model-1|{shape.seed}|{shape.vocab_size}|{shape.eos_tokens}"
    return HashModel(
        settings=shape,
        identity=ModelIdentity(
            name=model.name or HASH,
            fingerprint=hashlib.sha256(answers.encode()).hexdigest(),
            vocab_size=shape.vocab_size,
            max_context_tokens=model.max_context_tokens or LONGEST_CONTEXT,
        ),
        layout=KvLayout(
            layers=shape.layers,
            kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            block_size_tokens=engine.block_size_tokens,
            dtype=engine.dtype,
        ),
        eos_token_ids=frozenset(range(shape.vocab_size - shape.eos_tokens, shape.vocab_size)),
    )


def hash_answer(model: HashModel, prompt: Sequence[int], sampling: Sampling) -> list[int]:
    """Return the tokens that follow ``prompt``, the stop token that ended them included: the oracle.

    Raises `InvalidField` for what the model cannot do.
    """
    field = field_that_needs_logits(sampling)
    if field is not None:
        raise InvalidField(field, NEEDS_LOGITS)
    last = model.root_kv
    kv = b""  # of the tokens that are in no full block yet
    full_blocks = xxhash.xxh3_128()
    tokens = [*prompt]
    new = tokens
    while True:
        made = model.kv_after(last, new)
        last = made[-len(last) :]
        kv += made
        full = len(kv) - len(kv) % model.layout.block_bytes
        full_blocks.update(model.in_blocks(kv[:full]))
        kv = kv[full:]
        read = full_blocks.copy()
        read.update(model.in_blocks(kv))
        new = [model.draw(read.digest(), len(tokens), sampling, sampling.seed)]
        tokens += new
        if new[0] in sampling.stop_token_ids or len(tokens) == len(prompt) + sampling.max_tokens:
            return tokens[len(prompt) :]


def field_that_needs_logits(sampling: Sampling) -> str | None:
    """Return the first field of a request that asks for more than a token; None: all can be served."""
    cuts = (sampling.top_p, sampling.top_k, sampling.min_p, sampling.typical_p)
    cut = cuts != _NO_CUTS and sampling.temperature > 0
    if sampling.plain and not cut and sampling.logprobs is None and sampling.prompt_logprobs is None:
        return None  # the usual case, at once
    asked = (name for name in _LOGIT_FIELDS if getattr(sampling, name) != getattr(_FREE, name))
    return "sampling_params." + next(_LOGIT_FIELDS[name] for name in asked if cut or name not in _CUTS)
