"""How long a worker needs from its start to its first token, and its memory: a real worker, as it runs without Ray.

A decode worker that reads prompts itself loads the whole engine and everything else a worker has: UCX, gRPC, its
registration in the directory.
"""

import json
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import psutil

from benchmarks.peer_process import running
from block_directory.embedded import EmbeddedServer
from block_directory.settings import DirectorySettings
from cluster_core.identity import Attempt, RequestId
from cluster_core.layout import KvLayout
from cluster_core.sampling import Sampling
from cluster_rpc.v1 import worker_pb2_grpc
from cluster_rpc.worker_messages import WorkOrder, decode_to_proto

_BLOCKS = 1024
_PROMPT_TOKENS = 512
_TIMEOUT_S = 120.0
_GREEDY = Sampling(temperature=0.0, top_p=1.0, top_k=0, seed=0, max_tokens=1, stop_token_ids=frozenset())
_CONFIG = """\
[cluster]
name = "start"
prefill = 0
decode = 1

[model]
path = "{model}"

[engine]
dtype = "bfloat16"
threads = {threads}

[decode]
total_blocks = {blocks}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstToken:
    """What a fresh worker showed."""

    start_s: float
    """From the process's start to its first token, at a client, for a prompt of one token."""
    beyond_mb: float
    """Its memory after a longer prompt, less weights and pool."""


def first_token(model: Path, threads: int) -> FirstToken:
    """Start a worker, ask it twice, end it."""
    server = EmbeddedServer(DirectorySettings())
    with tempfile.TemporaryDirectory() as name:
        config = Path(name) / "start.toml"
        config.write_text(_CONFIG.format(model=model, threads=threads, blocks=_BLOCKS), encoding="utf-8")
        url = server.start()
        try:
            return _ask(config, url, model)
        finally:
            server.stop()


def _ask(config: Path, url: str, model: Path) -> FirstToken:
    started = time.perf_counter()
    arguments = (str(config), "--worker-id", "decode-0", "--directory-url", url)
    with running("decode_worker", *arguments, log=Path(os.devnull)) as worker:
        ready: dict[str, Any] = json.loads(worker.hear())
        with grpc.insecure_channel(ready["address"]) as channel:
            _answer(channel, 1)
            start_s = time.perf_counter() - started
            _answer(channel, _PROMPT_TOKENS)
        used = psutil.Process(ready["pid"]).memory_info().rss
    weights = sum(path.stat().st_size for path in model.glob("*.safetensors"))
    pool = _BLOCKS * KvLayout(**ready["layout"]).block_bytes
    return FirstToken(start_s=start_s, beyond_mb=(used - weights - pool) / 1e6)


def _answer(channel: grpc.Channel, tokens: int) -> None:
    """Let the worker read a prompt and write one token."""
    stub: Any = worker_pb2_grpc.DecodeServiceStub(channel)  # type: ignore[no-untyped-call]  # generated
    order = WorkOrder(
        request_id=RequestId(f"start-{tokens}"),
        attempt=Attempt(1),
        prompt_token_ids=(7,) * tokens,
        sampling=_GREEDY,
        root_hash=bytes(16),
    )
    events = list(stub.Decode(decode_to_proto(order), timeout=_TIMEOUT_S))
    assert any(event.HasField("tokens") for event in events), "an answer has a token"
