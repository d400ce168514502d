"""Which model is served, and how it is computed."""

from dataclasses import dataclass

from cluster_core.layout import DTYPE_BYTES

IMPLEMENTATIONS = ("baton", "transformers")
ATTENTIONS = ("auto", "reference", "compiled", "varlen", "triton")
LARGEST_BLOCK_TOKENS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings:
    """Section ``[model]``."""

    path: str
    """A Hugging Face folder: config.json, \\*.safetensors, tokenizer.json."""
    name: str = ""
    """The name clients ask for; empty: the folder's name."""
    max_context_tokens: int = 0
    """Prompt and answer together; 0: the model's own limit."""
    implementation: str = "baton"
    """``baton``: our decoder, for four families; ``transformers``: any decoder that attends through its interface."""

    def __post_init__(self) -> None:
        if not self.path:
            message = "path: must not be empty; name a model folder"
            raise ValueError(message)
        if self.implementation not in IMPLEMENTATIONS:
            message = f"implementation: {self.implementation!r} is not known; right are {', '.join(IMPLEMENTATIONS)}"
            raise ValueError(message)
        if self.max_context_tokens < 0:
            message = (
                f"max_context_tokens: must be 0 or more, not {self.max_context_tokens}; 0 is the model's own limit"
            )
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
