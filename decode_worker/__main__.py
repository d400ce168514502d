"""``python -m decode_worker CONFIG --worker-id decode-0 --directory-url URL``: a decode worker without Ray."""

import os
import sys

from cluster_core.failpoint_control import VARIABLE, open_control
from cluster_core.identity import WorkerId
from cluster_core.settings_reader import Document, read_section
from cluster_rpc.worker_process import Worker, end_process, run_worker
from decode_worker.settings import DecodeSettings


def build(document: Document, worker_id: WorkerId, directory_url: str) -> Worker:
    """See `decode_worker.wiring.build_worker`."""
    open_control(os.environ.get(VARIABLE, ""), read_section(document, "decode", DecodeSettings).host)
    from decode_worker.wiring import build_worker  # noqa: PLC0415  # while the collector rests

    return build_worker(document, worker_id, directory_url)


if __name__ == "__main__":
    end_process(run_worker(build, "decode_worker", sys.argv[1:]))
