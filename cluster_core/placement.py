"""Where a request is served."""

from dataclasses import dataclass

from cluster_core.identity import WorkerId


@dataclass(frozen=True, slots=True, kw_only=True)
class Local:
    """One decode worker prefills the prompt and writes the answer: nothing is handed over."""

    worker: WorkerId


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """A prefill worker reads the prompt and hands its blocks to a decode worker."""

    prefill: WorkerId
    decode: WorkerId


Placement = Local | Split
