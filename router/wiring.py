"""Puts the router together from a configuration document, and runs it from start to close."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass

from block_directory.follower import Follower
from block_directory.index import PrefixIndex
from block_directory.redis_answer import without_password
from block_directory.redis_directory import RedisDirectory
from block_directory.settings import DirectorySettings
from cluster_core.errors import NoWorker
from cluster_core.settings_reader import Document, read_section
from cluster_rpc.channels import ChannelPool
from cluster_rpc.limits import PUBLIC
from cluster_rpc.server import CLUSTER, GENERATION, RpcServer
from inference_engine.served_model import layout_of_served, open_served_model
from inference_engine.settings import EngineSettings
from router.admission import Admission
from router.cluster_service import ClusterService, Overview, PoolController
from router.generation_service import GenerationService, Serving
from router.ledger import Ledger
from router.link_survey import LinkSurvey
from router.live_requests import LiveRequests
from router.membership import Expected, Membership
from router.model_texts import load_model_texts
from router.placement_history import PlacementHistory
from router.placer import Placer
from router.prompt import RequestPreparer
from router.request_flow import FlowParts
from router.settings import RouterSettings
from router.text_stream import TextStream

CLOSE_GRACE_S = 1.0
"""How long ended requests may take to tell their clients."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Core:
    """Everything of a router that is neither model nor directory: what a test or a benchmark needs as well."""

    settings: RouterSettings
    index: PrefixIndex
    ledger: Ledger
    channels: ChannelPool
    membership: Membership
    admission: Admission
    live: LiveRequests
    flow: FlowParts


def build_core(
    settings: RouterSettings,
    expected: Expected,
    index: PrefixIndex,
    clock: Callable[[], float] = time.monotonic,
    channels: ChannelPool | None = None,
) -> Core:
    """Wire membership, placement and flow."""
    ledger = Ledger(clock)
    channels = channels or ChannelPool()
    membership = Membership(expected=expected, index=index, ledger=ledger, channels=channels, settings=settings)
    placer = Placer(
        membership=membership, index=index, ledger=ledger, expected=expected, settings=settings, clock=clock
    )
    history = PlacementHistory(settings.kept_placements)
    flow = FlowParts(placer=placer, membership=membership, history=history, settings=settings, clock=clock)
    return Core(
        settings=settings,
        index=index,
        ledger=ledger,
        channels=channels,
        membership=membership,
        admission=Admission(settings, clock),
        live=LiveRequests(),
        flow=flow,
    )


class Router:
    """The router's process: `start`, then `close`."""

    def __init__(
        self,
        *,
        core: Core,
        generation: GenerationService,
        cluster: ClusterService,
        directory: RedisDirectory,
        follower: Follower,
    ) -> None:
        self._core = core
        self._generation = generation
        self._directory = directory
        self._follower = follower
        self._server = RpcServer(PUBLIC)
        self._server.add(GENERATION, generation)
        self._server.add(CLUSTER, cluster)
        self._survey = LinkSurvey(core.membership, time.monotonic)

    @property
    def membership(self) -> Membership:
        """Who is there."""
        return self._core.membership

    async def start(self) -> str:
        """Follow the directory and serve; return the address. Raises `PartUnavailable` when the port is taken."""
        address = await self._server.start(self._core.settings.host, self._core.settings.port)
        await self._follower.start()
        self._survey.start()
        return address

    async def wait_until_warm(self, timeout_s: float) -> bool:
        """Wait until the ways between the workers that are there were measured, and are warm by that."""
        return await self._survey.wait_until_measured(timeout_s)

    async def close(self) -> None:
        """Refuse new requests, let live ones end within ``drain_timeout_s``, end the rest, and give all back."""
        self._generation.stopping = True
        await self._server.set_serving(serving=False)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._core.settings.drain_timeout_s):
                await self._core.live.wait_until_none()
        self._core.live.end_all(NoWorker("the router is stopping", CLOSE_GRACE_S))
        await self._server.close(CLOSE_GRACE_S)
        await self._survey.close()
        await self._follower.close()
        await self._core.membership.close()
        await self._core.channels.close()
        await self._directory.close()


def build_router(document: Document, directory_url: str, pools: PoolController | None = None) -> Router:
    """Build a router for the model and the directory of ``document``. Raises `OperatorError`.

    ``directory_url`` wins over the document's; ``pools`` is whoever can start and stop workers.
    """
    settings = read_section(document, "router", RouterSettings)
    directory_settings = read_section(document, "directory", DirectorySettings)
    model = open_served_model(document)
    layout = layout_of_served(model, read_section(document, "engine", EngineSettings))
    texts = load_model_texts(model)
    preparer = RequestPreparer(
        tokenizer=texts.tokenizer,
        model=model.identity,
        served_name=settings.served_model_name or model.identity.name,
        eos_token_ids=model.eos_token_ids,
        chat_template=texts.chat_template,
    )
    index = PrefixIndex(max_blocks=directory_settings.index_max_blocks)
    core = build_core(settings, Expected(model=model.identity, layout=layout), index)
    url = directory_url or directory_settings.url
    directory = RedisDirectory(url, directory_settings)
    members = core.membership
    follower = Follower(directory, index, members.on_workers, directory_settings, is_heard=members.is_heard)
    generation = GenerationService(
        Serving(
            preparer=preparer,
            open_text=lambda options: TextStream(texts.tokenizer, options),
            admission=core.admission,
            live=core.live,
            flow=core.flow,
        )
    )
    cluster = ClusterService(
        Overview(
            membership=core.membership,
            admission=core.admission,
            history=core.flow.history,
            served_name=preparer.served_name,
            directory_url=without_password(url),
            degraded=lambda: follower.degraded,
            pools=pools,
        )
    )
    return Router(core=core, generation=generation, cluster=cluster, directory=directory, follower=follower)
