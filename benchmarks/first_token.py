"""A fresh process that does what a prefill worker does before its first token, less Ray and the network.

``python -m benchmarks.first_token FOLDER THREADS`` prints how long that took, counted from the process's start, and the
process's memory beyond weights and pool.
"""

import json
import sys
import time
from pathlib import Path

import psutil

import prefill_worker.wiring
from cluster_core.sampling import Sampling
from inference_engine.engine import Engine
from inference_engine.model_folder import open_model_folder
from inference_engine.settings import EngineSettings, ModelSettings
from inference_engine.single import generate
from inference_engine.warm_up import warm_up

assert prefill_worker.wiring  # a worker imports it all
_BLOCKS = 1024
_PROMPT_TOKENS = 512


def main() -> None:
    """Load, warm up, read a prompt, tell."""
    folder, threads = Path(sys.argv[1]), int(sys.argv[2])
    model = open_model_folder(ModelSettings(path=str(folder)))
    settings = EngineSettings(dtype="bfloat16", threads=threads)
    engine = warm_up(Engine.load(model, settings, _BLOCKS))
    greedy = Sampling(temperature=0.0, top_p=1.0, top_k=0, seed=0, max_tokens=1, stop_token_ids=frozenset())
    generate(engine, [7], greedy)
    process = psutil.Process()
    started_s = time.time() - process.create_time()
    generate(engine, [7] * _PROMPT_TOKENS, greedy)
    weights = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    pool = _BLOCKS * engine.layout.block_bytes
    engine.memory.storage.fill_(1)  # all of the pool is there, as it is in a worker that has run for a while
    beyond = (process.memory_info().rss - weights - pool) / 1e6
    json.dump({"start_s": started_s, "beyond_mb": beyond}, sys.stdout)


if __name__ == "__main__":
    main()
