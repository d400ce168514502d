"""One life of the simulated router: everything of the real one but its sockets, its tokenizer and its text."""

import asyncio
import random
from collections.abc import Sequence

import tokenizers
from tokenizers import models

from block_directory.follower import Follower
from block_directory.index import PrefixIndex
from block_directory.settings import DirectorySettings
from cluster_core.layout import KvLayout
from cluster_rpc.channels import ChannelPool
from cluster_rpc.server import GENERATION
from router.generation_service import GenerationService, Serving
from router.membership import Expected
from router.prompt import RequestPreparer
from router.settings import RouterSettings
from router.text_stream import TextDelta
from router.tokenizer import Tokenizer
from router.wiring import build_core
from simulation.calls import Channel
from simulation.directory_server import DirectoryClient, DirectoryServer
from simulation.hash_engine import MODEL
from simulation.network import Network
from simulation.servers import Server
from simulation.virtual_loop import Host

FIRST = "router"


def router_address(name: str) -> str:
    """Return where the router of that name serves, in each of its lives."""
    return f"{name}:1"


_PREPARER = RequestPreparer(
    tokenizer=Tokenizer(tokenizers.Tokenizer(models.WordLevel({"w0": 0}, unk_token="w0"))),  # noqa: S106  # a word, no password
    model=MODEL,
    served_name=MODEL.name,
    eos_token_ids=frozenset(),
)


def token_text(token_id: int) -> str:
    """Return what stands for a token in a stop string."""
    return f"<{token_id}>"


class StopsOnly:
    """The text of answers that nobody reads, but for stop strings: `router.answer_choice.AnswerText`."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops

    def feed(self, token_ids: Sequence[int]) -> TextDelta:
        """Take tokens, up to the first whose text is a stop string."""
        for used, token_id in enumerate(token_ids, start=1):
            if (text := token_text(token_id)) in self._stops:
                return TextDelta(text="", stopped_by=text, tokens_used=used)
        return TextDelta(text="", stopped_by=None, tokens_used=len(token_ids))

    def finish(self) -> str:
        """Return nothing."""
        return ""


class RouterLife:
    """From `start` to a crash."""

    def __init__(self, network: Network, host: Host, settings: RouterSettings, layout: KvLayout) -> None:
        clock = network.loop.time
        self.host = host
        self.index = PrefixIndex(clock=clock)
        self.core = build_core(
            settings,
            Expected(model=MODEL, layout=layout),
            self.index,
            clock,
            ChannelPool(open_at=lambda to, _: Channel(network, host, to)),  # type: ignore[arg-type, return-value]  # what its users know of one
        )
        self.follower: Follower
        self._server = Server(network, host, router_address(host.name))
        service = GenerationService(
            Serving(
                preparer=_PREPARER,
                open_text=lambda options: StopsOnly(options.stop),
                admission=self.core.admission,
                live=self.core.live,
                flow=self.core.flow,
            )
        )
        self._server.add(GENERATION, service)

    def start(self, directory: DirectoryServer, settings: DirectorySettings, randomness: random.Random) -> None:
        """Follow the directory and serve. Called on the host."""
        self.follower = Follower(
            DirectoryClient(directory, self.host),
            self.index,
            self.core.membership.on_workers,
            settings,
            is_heard=self.core.membership.is_heard,
            randomness=randomness,
        )
        self._server.start()
        asyncio.create_task(self.follower.start(), name="start")  # noqa: RUF006  # the host keeps its tasks
