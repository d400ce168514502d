"""``python -m prefill_worker CONFIG --worker-id prefill-0 --directory-url URL``: a prefill worker without Ray."""

import sys

from cluster_rpc.worker_process import end_process, run_worker
from prefill_worker.wiring import build_worker

if __name__ == "__main__":
    end_process(run_worker(build_worker, "prefill_worker", sys.argv[1:]))
