"""What the router costs: against a bare `grpc.aio` echo of the same payload, in the same run.

Four processes: this client; the router, as ``python -m router`` runs it, with a real directory; a prefill and a decode
worker that answer at once; the echo. A request's *added* time is what it takes from the client's call to the first
token through the router, less what the same work takes when the client calls the worker itself.
"""

import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from benchmarks import report
from benchmarks.bench_model import make_bench_model
from benchmarks.echo_server import METHOD
from benchmarks.instant_workers import TOKEN
from benchmarks.peer_process import running
from block_directory.embedded import EmbeddedServer
from block_directory.settings import DirectorySettings
from cluster_rpc.limits import PUBLIC
from cluster_rpc.v1 import generation_pb2, generation_pb2_grpc, worker_pb2, worker_pb2_grpc

PROMPT_TOKENS = 512
ANSWER_TOKENS = 8
CONCURRENCY = 32
TIMEOUT_S = 60.0
AIM_ECHOES = 3.0
RESOLUTION_MS = 0.01
"""What a request takes by the router less what it takes without may come out below 0 in a short run on a busy machine:
this stands for all that cannot be told from the jitter of a call."""
CASES = (
    "route.added.split",
    "route.added.split.aim",
    "route.added.local",
    "route.added.local.aim",
    "route.requests.split",
    "route.requests.local",
)

Call = Callable[[], Awaitable[float]]
"""Makes one request to its end; returns the seconds to the first token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calls:
    """The same request, made in each of the ways that are compared."""

    echo: Call
    split: Call
    local: Call
    prefill: Call
    decode: Call


def _request() -> generation_pb2.GenerateRequest:
    return generation_pb2.GenerateRequest(
        tokenized=generation_pb2.TokenizedInput(input_ids=range(1000, 1000 + PROMPT_TOKENS)),
        sampling_params=generation_pb2.SamplingParams(temperature=0.0, max_tokens=ANSWER_TOKENS),
    )


def _echo_answer() -> list[str]:
    """Return what the router's answer looks like, in hex: the first token's message, and the last one."""
    chunk = generation_pb2.GenerateStreamChunk(token_ids=[TOKEN], text=" w300")
    timings = generation_pb2.Timings(queue_s=0.1, prefill_s=0.1, ttft_s=0.1, tpot_s=0.1, total_s=0.1)
    complete = generation_pb2.GenerateComplete(
        finish_reason="length", prompt_tokens=PROMPT_TOKENS, completion_tokens=8, request_id="0" * 32, timings=timings
    )
    answers = generation_pb2.GenerateResponse(chunk=chunk), generation_pb2.GenerateResponse(complete=complete)
    return [answer.SerializeToString().hex() for answer in answers]


async def _first_token(call: Any, is_token: Callable[[Any], bool]) -> float:
    started = time.perf_counter()
    first = None
    async for message in call():
        if first is None and is_token(message):
            first = time.perf_counter() - started
    assert first is not None, "an answer has a token"
    return first


def _through_router(channel: grpc.aio.Channel) -> Call:
    stub: Any = generation_pb2_grpc.GenerationServiceStub(channel)  # type: ignore[no-untyped-call]  # generated
    request = _request()
    return lambda: _first_token(
        lambda: stub.Generate(request, timeout=TIMEOUT_S), lambda answer: answer.WhichOneof("response") == "chunk"
    )


def _to_worker(channel: grpc.aio.Channel, *, prefill: bool) -> Call:
    sampling = worker_pb2.Sampling(temperature=0.0, top_p=1.0, max_tokens=ANSWER_TOKENS)
    prompt = range(1000, 1000 + PROMPT_TOKENS)
    fields: dict[str, Any] = {"request_id": "direct", "attempt": 1, "prompt_token_ids": prompt, "sampling": sampling}
    if prefill:
        prefill_stub: Any = worker_pb2_grpc.PrefillServiceStub(channel)  # type: ignore[no-untyped-call]  # generated
        order = worker_pb2.PrefillRequest(root_hash=bytes(16), **fields)
        return lambda: _first_token(
            lambda: prefill_stub.Prefill(order, timeout=TIMEOUT_S),
            lambda event: event.WhichOneof("event") == "first_token",
        )
    decode_stub: Any = worker_pb2_grpc.DecodeServiceStub(channel)  # type: ignore[no-untyped-call]  # generated
    decode_order = worker_pb2.DecodeRequest(root_hash=bytes(16), **fields)
    return lambda: _first_token(
        lambda: decode_stub.Decode(decode_order, timeout=TIMEOUT_S), lambda event: event.WhichOneof("event") == "tokens"
    )


def _to_echo(channel: grpc.aio.Channel) -> Call:
    open_call: Any = channel.unary_stream  # bytes as they are: the stubs demand serializers
    call = open_call(METHOD)
    payload = _request().SerializeToString()
    return lambda: _first_token(lambda: call(payload, timeout=TIMEOUT_S), lambda _: True)


@asynccontextmanager
async def _everything(folder: Path) -> AsyncIterator[Calls]:
    """Start the directory, the workers, two routers (one a placement) and the echo; end them with the block."""
    async with AsyncExitStack() as exits:
        model = make_bench_model(folder / "bench-82m")
        directory = EmbeddedServer(DirectorySettings())
        exits.callback(directory.stop)
        url = directory.start()
        echo = exits.enter_context(running("benchmarks.echo_server", *_echo_answer())).hear()
        workers = exits.enter_context(running("benchmarks.instant_workers", str(model), url)).hear().split()
        routers = []
        for placement in ("split", "local"):
            config = folder / f"{placement}.toml"
            config.write_text(
                f'[model]\npath = "{model}"\n[engine]\ndtype = "bfloat16"\n'
                f'[router]\nport = 0\nplacement = "{placement}"\n'
            )
            arguments = (str(config), "--directory-url", url, "--log-level", "WARNING")
            routers.append(json.loads(exits.enter_context(running("router", *arguments)).hear())["address"])
        channels = [
            await exits.enter_async_context(grpc.aio.insecure_channel(address, options=PUBLIC.channel_options()))
            for address in (echo, *routers, *workers)
        ]
        yield Calls(
            echo=_to_echo(channels[0]),
            split=_through_router(channels[1]),
            local=_through_router(channels[2]),
            prefill=_to_worker(channels[3], prefill=True),
            decode=_to_worker(channels[4], prefill=False),
        )


async def _latencies(calls: Calls, rounds: int) -> dict[str, float]:
    """Return the median time to the first token of each way."""
    names = ("echo", "split", "local", "prefill", "decode")
    samples: dict[str, list[float]] = {name: [] for name in names}
    for position in report.turns("one request at a time", rounds, len(names)):
        name = names[position]
        samples[name].append(await getattr(calls, name)())
    return {name: statistics.median(values) for name, values in samples.items()}


async def _requests_per_s(call: Call, requests: int) -> float:
    remaining = iter(range(requests))

    async def client() -> None:
        for _ in remaining:
            await call()

    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(CONCURRENCY):
            group.create_task(client())
    return requests / (time.perf_counter() - started)


async def _throughputs(calls: Calls, rounds: int, requests: int) -> dict[str, float]:
    names = ("echo", "split", "local")
    samples: dict[str, list[float]] = {name: [] for name in names}
    for position in report.turns(f"{CONCURRENCY} requests at a time", rounds, len(names)):
        name = names[position]
        samples[name].append(await _requests_per_s(getattr(calls, name), requests))
    return {name: statistics.median(values) for name, values in samples.items()}


async def measure(folder: Path, *, quick: bool) -> list[report.Row]:
    """Return a row for each of `CASES`."""
    async with _everything(folder) as calls:
        await _latencies(calls, 5 if quick else 50)  # connections, caches, the routers' view of the workers
        taken = await _latencies(calls, 10 if quick else 300)
        rates = await _throughputs(calls, 1 if quick else 5, CONCURRENCY if quick else 640)
    rows = []
    for placement, direct in (("split", "prefill"), ("local", "decode")):
        added_ms = max(1000 * (taken[placement] - taken[direct]), RESOLUTION_MS)
        echo_ms = 1000 * taken["echo"]
        case = f"route.added.{placement}"
        rows.append(report.lower_is_better(case, added_ms, "ms", "bare grpc.aio echo", echo_ms))
        against = f"aim: {AIM_ECHOES:g} x the echo"
        rows.append(report.lower_is_better(f"{case}.aim", added_ms, "ms", against, AIM_ECHOES * echo_ms))
    for placement in ("split", "local"):
        case = f"route.requests.{placement}"
        rows.append(report.higher_is_better(case, rates[placement], "requests/s", "bare grpc.aio echo", rates["echo"]))
    return rows


def main() -> None:
    """Measure and print."""
    options = report.parser(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = asyncio.run(measure(Path(folder), quick=options.quick))
    report.show(rows, as_json=options.json)


if __name__ == "__main__":
    main()
