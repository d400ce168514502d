"""What is said of blocks that workers held for nobody: each is a bug, and was given back or set apart."""

from collections.abc import Iterator

from cluster_launcher.findings import Finding, warn
from cluster_rpc.answers import ClusterView

_CURE = (
    "nothing was lost: please report it as an issue, with the output of `baton status --json` and the lines "
    '"a bug, please report" of that worker\'s log (`baton up --verbose` shows it), which name the requests'
)


def hold_findings(view: ClusterView) -> Iterator[Finding]:
    """Yield a warning for each worker that has found holds without an owner."""
    for worker in view.workers:
        count = worker.load.orphaned_holds
        if count:
            blocks = "1 block was" if count == 1 else f"{count} blocks were"
            yield warn(worker.worker_id, f"{blocks} held by nobody any more: a bug in Baton", _CURE)
