"""Which model is served, and how it is computed."""

import math
from dataclasses import dataclass

from cluster_core.layout import DTYPE_BYTES

HASH = "hash"
IMPLEMENTATIONS = ("baton", "transformers", HASH)
ATTENTIONS = ("auto", "reference", "compiled", "varlen", "triton")
LARGEST_BLOCK_TOKENS = 1024
BYTE_TOKENS = 256
"""The first ids of the hash model stand for the bytes of a text."""
MOST_EOS_TOKENS = 128
"""A request has room for 256 stop tokens, its own among them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings:
    """Section ``[model]``."""

    path: str = ""
    """A Hugging Face folder: config.json, \\*.safetensors, tokenizer.json; must be given, but for ``hash``."""
    name: str = ""
    """The name clients ask for; empty: the folder's name, or ``hash``."""
    max_context_tokens: int = 0
    """Prompt and answer together; 0: the model's own limit."""
    implementation: str = "baton"
    """``baton``: our decoder, for four families; ``transformers``: any decoder that attends through its interface;
    ``hash``: no model at all but hashes, for tests and load (`inference_engine.hash_lm`)."""

    def __post_init__(self) -> None:
        if self.implementation not in IMPLEMENTATIONS:
            message = f"implementation: {self.implementation!r} is not known; right are {', '.join(IMPLEMENTATIONS)}"
            raise ValueError(message)
        if self.implementation == HASH and self.path:
            message = "path: the hash model has no folder; leave the key out, or choose another model.implementation"
            raise ValueError(message)
        if self.implementation != HASH and not self.path:
            message = "path: must be given; name a folder with config.json, *.safetensors, tokenizer.json"
            raise ValueError(message)
        if self.max_context_tokens < 0:
            message = (
                f"max_context_tokens: must be 0 or more, not {self.max_context_tokens}; 0 is the model's own limit"
            )
            raise ValueError(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class HashModelSettings:
    """Section ``[hash_model]``: the model of ``implementation = "hash"``. All workers must have the same.

    A token's KV takes ``layers`` × 2 × ``kv_heads`` × ``head_dim`` numbers of ``engine.dtype``.
    """

    seed: int = 0
    """Another seed is another model."""
    vocab_size: int = 65536
    eos_tokens: int = 1
    """The last so many ids end an answer: its mean length is ``vocab_size / eos_tokens``; 0: none does."""
    layers: int = 2
    kv_heads: int = 1
    head_dim: int = 2
    prefill_tokens_per_s: float = 0.0
    """How fast a worker reads prompts; 0: as fast as it can."""
    decode_step_s: float = 0.0
    """How long a step takes that writes answers, however many; prompt tokens in it come on top."""

    def __post_init__(self) -> None:
        bounds = {
            "vocab_size": (BYTE_TOKENS, 1 << 24),
            "eos_tokens": (0, MOST_EOS_TOKENS),
            "layers": (1, 1024),
            "kv_heads": (1, 4096),
            "head_dim": (1, 1024),
        }
        for key, (low, high) in bounds.items():
            value = getattr(self, key)
            if not low <= value <= high:
                message = f"{key}: must be {low} to {high}, not {value}"
                raise ValueError(message)
        for key in ("prefill_tokens_per_s", "decode_step_s"):
            value = getattr(self, key)
            if not 0 <= value < math.inf:
                message = f"{key}: must be a finite number, 0 or more, not {value}"
                raise ValueError(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """Section ``[engine]``."""

    device: str = "cpu"
    """``cpu``, ``cuda`` or ``cuda:N``."""
    dtype: str = "float32"
    """``float32`` or ``bfloat16``; weights are converted when they are loaded."""
    attention: str = "auto"
    """``auto``: ``compiled`` on the CPU; on CUDA ``varlen`` where it reads blocks in place, else ``triton``."""
    cuda_graphs: bool = True
    """Replay decode steps on CUDA, where attention is ``auto`` or ``triton``."""
    threads: int = 0
    """CPU threads of one engine; 0 leaves torch's own choice, which is all cores."""
    block_size_tokens: int = 16
    batch_invariant: bool = False
    """A request's logits do not depend on the requests beside it nor on its prompt's chunks, bit for bit; CPU alone."""

    def __post_init__(self) -> None:
        kind, _, number = self.device.partition(":")
        if kind not in {"cpu", "cuda"} or (":" in self.device and not (kind == "cuda" and number.isdecimal())):
            message = f"device: {self.device!r} is not known; right are cpu, cuda, cuda:0, cuda:1, ..."
            raise ValueError(message)
        if self.dtype not in DTYPE_BYTES:
            message = f"dtype: {self.dtype!r} is not known; right are {', '.join(DTYPE_BYTES)}"
            raise ValueError(message)
        if self.attention not in ATTENTIONS:
            message = f"attention: {self.attention!r} is not known; right are {', '.join(ATTENTIONS)}"
            raise ValueError(message)
        if self.attention == "compiled" and kind != "cpu":
            message = "attention: compiled runs on the CPU alone; right with cuda are auto, triton, varlen, reference"
            raise ValueError(message)
        if self.attention == "varlen" and (kind != "cuda" or self.dtype != "bfloat16"):
            message = "attention: varlen needs device cuda and dtype bfloat16; right elsewhere is auto"
            raise ValueError(message)
        if self.attention == "triton" and kind != "cuda":
            message = "attention: triton needs device cuda; right elsewhere is auto"
            raise ValueError(message)
        if self.batch_invariant and (kind != "cpu" or self.attention not in {"auto", "compiled"}):
            message = "batch_invariant: is promised on the CPU with attention auto or compiled alone; right is false"
            raise ValueError(message)
        if self.threads < 0:
            message = f"threads: must be 0 or more, not {self.threads}"
            raise ValueError(message)
        if not 1 <= self.block_size_tokens <= LARGEST_BLOCK_TOKENS:
            message = f"block_size_tokens: must be 1 to {LARGEST_BLOCK_TOKENS}, not {self.block_size_tokens}"
            raise ValueError(message)
