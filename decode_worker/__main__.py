"""``python -m decode_worker CONFIG --worker-id decode-0 --directory-url URL``: a decode worker without Ray."""

import sys

from cluster_rpc.worker_process import end_process, run_worker
from decode_worker.wiring import build_worker

if __name__ == "__main__":
    end_process(run_worker(build_worker, "decode_worker", sys.argv[1:]))
