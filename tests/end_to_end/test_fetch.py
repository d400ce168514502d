"""The next turn of a conversation, on other workers than the last: what those have in their caches is fetched.

Everything is a process of its own, started by hand. Conversations begin on the first two workers; then two more come,
and the first ones drain, so that they may lend and nothing else.
"""

import asyncio
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pytest

from block_directory.embedded import EmbeddedServer
from block_directory.redis_directory import RedisDirectory
from block_directory.settings import DirectorySettings
from cluster_core.errors import NotServed
from cluster_core.handoff import FetchReport
from cluster_core.identity import Incarnation, WorkerId
from cluster_core.sampling import Sampling
from cluster_rpc.answers import AttemptView
from cluster_rpc.client import BatonClient
from inference_engine.hash_model import hash_answer, make_hash_model
from inference_engine.settings import EngineSettings, HashModelSettings, ModelSettings
from tests.end_to_end.clusters import at_rest, cluster_config
from tests.end_to_end.test_without_ray import ready_line, start
from tests.inference_engine.hash_models import random_tokens

SHAPE = HashModelSettings(vocab_size=4096, eos_tokens=0, layers=3, prefill_tokens_per_s=500)
"""Reading a prompt of these tests anew takes most of a second, more than half of it for the answer in it: so much more
than a fetch, even on a busy machine, that there is no doubt of what is faster and of who is the best lender."""
MODEL = make_hash_model(ModelSettings(implementation="hash"), SHAPE, EngineSettings())
PROMPT_TOKENS, ANSWER_TOKENS = 160, 240
LENT_BLOCKS = (PROMPT_TOKENS + ANSWER_TOKENS - 1) // 16
"""Of prompt and answer, whose last token is never computed."""
TURNS = 3
WITHIN_S = 20.0


@dataclass
class Cluster:
    """A directory's server, a router, and workers that come when they are asked for."""

    config: Path
    folder: Path
    exits: ExitStack
    url: str
    address: str = ""
    processes: "dict[str, subprocess.Popen[str]]" = field(default_factory=dict)
    lives: dict[str, Incarnation] = field(default_factory=dict)

    def start(self, *names: str) -> None:
        """Start the workers of these names, all at once, and wait until they serve."""
        for name in names:
            command = f"{name.split('-')[0]}_worker", str(self.config), "--worker-id", name
            self.processes[name] = self._start(name, *command)
        for name in names:
            ready = ready_line(self.processes[name], self.folder / f"{name}.log")
            self.lives[name] = Incarnation(int(str(ready["incarnation"])))

    def start_router(self) -> None:
        ready = ready_line(self._start("router", "router", str(self.config)), self.folder / "router.log")
        self.address = str(ready["address"])

    def _start(self, name: str, *command: str) -> "subprocess.Popen[str]":
        return start(self.exits, self.folder / f"{name}.log", *command, "--directory-url", self.url)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("fetch")
    config = cluster_config(folder, None, hash_model=asdict(SHAPE), transfer={"transport": "ucx"})
    with ExitStack() as exits:
        server = EmbeddedServer(DirectorySettings())
        url = server.start()
        exits.callback(server.stop)
        one = Cluster(config, folder, exits, url)
        one.start("prefill-0", "decode-0")
        one.start_router()
        for process in one.processes.values():
            exits.callback(process.send_signal, signal.SIGCONT)
        yield one


def greedy(prompt: list[int]) -> list[int]:
    sampling = Sampling(
        temperature=0.0, top_p=1.0, top_k=0, seed=0, max_tokens=ANSWER_TOKENS, stop_token_ids=MODEL.eos_token_ids
    )
    return hash_answer(MODEL, prompt, sampling)


async def asked(client: BatonClient, name: str, prompt: list[int]) -> list[int]:
    answer = await client.generate_text(prompt, max_tokens=ANSWER_TOKENS, temperature=0.0, request_id=name)
    return list(answer.token_ids)


async def placed(client: BatonClient, name: str) -> AttemptView:
    (attempt,) = await client.get_placement(name)
    return attempt


async def fetched(client: BatonClient, name: str, lender: str = "decode-0", blocks: int = LENT_BLOCKS) -> FetchReport:
    attempt = await placed(client, name)
    assert (attempt.chosen.prefill_worker, attempt.chosen.decode_worker) == ("prefill-1", "decode-1")
    assert (attempt.chosen.fetch_worker, attempt.chosen.fetch_blocks) == (lender, blocks)
    assert attempt.fetch is not None
    assert attempt.fetch.lender == lender
    return attempt.fetch


async def until_published(cluster: Cluster, blocks: int) -> None:
    directory = RedisDirectory(cluster.url, DirectorySettings())
    try:
        async with asyncio.timeout(WITHIN_S):
            while True:
                snapshot = await directory.snapshot(WorkerId("decode-0"), cluster.lives["decode-0"])
                if snapshot is not None and len(snapshot.hashes) >= blocks:
                    return
                await asyncio.sleep(0.02)
    finally:
        await directory.close()


async def test_the_next_turn_on_other_workers_fetches_what_was_read_and_written_before(cluster: Cluster) -> None:
    async with BatonClient(cluster.address) as client:
        turns = []
        for number in range(TURNS):
            history = [token % SHAPE.vocab_size for token in random_tokens(PROMPT_TOKENS, seed=number)]
            first = await asked(client, f"first-{number}", history)
            assert first == greedy(history)
            turns.append([*history, *first, *range(number, number + 20)])
        await until_published(cluster, TURNS * LENT_BLOCKS)
        cluster.start("prefill-1", "decode-1")
        assert await client.drain("prefill-0")
        assert await client.drain("decode-0")
        await eventually_ready(client)

        assert await asked(client, "lent", turns[0]) == greedy(turns[0])
        report = await fetched(client, "lent")
        assert (report.asked_blocks, report.moved_blocks, report.failure) == (LENT_BLOCKS, LENT_BLOCKS, "")
        assert report.moved_bytes > 0
        assert "fetch" in dict((await placed(client, "lent")).chosen.terms)
        view = await at_rest(client)
        assert not [worker for worker in view.workers if worker.load.orphaned_holds]

        lender = cluster.processes["decode-0"]
        lender.send_signal(signal.SIGSTOP)
        running = asyncio.create_task(asked(client, "killed", turns[1]))
        await until_placed(client, "killed")
        lender.kill()
        assert await running == greedy(turns[1])
        report = await fetched(client, "killed")
        assert report.moved_blocks == 0
        assert report.failure != ""

        cluster.processes["prefill-0"].send_signal(signal.SIGSTOP)
        assert await asked(client, "paused", turns[2]) == greedy(turns[2])
        report = await fetched(client, "paused", "prefill-0", PROMPT_TOKENS // 16)
        assert report.moved_blocks == 0
        assert "did not lend its blocks within" in report.failure
        assert report.elapsed_s < WITHIN_S


async def eventually_ready(client: BatonClient) -> None:
    states = {"prefill-0": "draining", "decode-0": "draining", "prefill-1": "ready", "decode-1": "ready"}
    async with asyncio.timeout(WITHIN_S):
        while states != {one.worker_id: one.state for one in (await client.list_workers()).workers}:  # noqa: ASYNC110  # other processes
            await asyncio.sleep(0.02)


async def until_placed(client: BatonClient, name: str) -> None:
    async with asyncio.timeout(WITHIN_S):
        while True:
            try:
                if await client.get_placement(name):
                    return
            except NotServed:  # not placed yet
                await asyncio.sleep(0.005)
