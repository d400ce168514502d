"""Follows one worker's `Watch` stream, and opens it again for as long as the worker is known."""

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
from grpc.aio import EOF as END_OF_STREAM  # type: ignore[attr-defined]  # missing in the stubs

from cluster_core.errors import InvalidField
from cluster_core.identity import Incarnation
from cluster_core.workers import WorkerLoad
from cluster_rpc.v1 import worker_pb2
from cluster_rpc.worker_messages import load_from_proto
from router.settings import RouterSettings
from router.worker_connection import WorkerConnection

FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 1.0


class Watch:
    """Tells of every status, of a stream's end, and of a silence in one that stands."""

    def __init__(
        self,
        *,
        connection: WorkerConnection,
        incarnation: Incarnation,
        settings: RouterSettings,
        on_status: Callable[[worker_pb2.WorkerStatus, WorkerLoad], None],
        on_end: Callable[[str], None],
        on_silence: Callable[[str], None],
    ) -> None:
        self._connection = connection
        self._incarnation = incarnation
        self._period_s = settings.watch_period_s
        self._silence_s = settings.watch_period_s * settings.watch_silence_periods
        self._on_status = on_status
        self._on_end = on_end
        self._on_silence = on_silence
        self._pause_s = FIRST_PAUSE_S

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            call: Any = None
            try:
                call = self._connection.watch(worker_pb2.WatchRequest(period_s=self._period_s))
                await self._follow(call)
                self._on_end("it ended its stream")
            except grpc.aio.AioRpcError as error:
                self._on_end(f"its stream broke ({error.code().name})")
            except grpc.aio.UsageError as error:
                self._on_end(f"its channel cannot be used ({error})")
            except InvalidField as error:
                self._on_end(f"its status is wrong ({error})")
            except TimeoutError:
                self._on_silence(f"it was silent for {self._silence_s:g} s")
            finally:
                if call is not None:
                    call.cancel()
            await asyncio.sleep(self._pause_s)
            self._pause_s = min(LONGEST_PAUSE_S, 2 * self._pause_s)

    async def _follow(self, call: Any) -> None:
        while True:
            async with asyncio.timeout(self._silence_s):
                status = await call.read()
            if status is END_OF_STREAM:
                return
            if status.incarnation != self._incarnation:
                self._on_end("another life of a worker answers at its address")
                return
            self._pause_s = FIRST_PAUSE_S
            self._on_status(status, load_from_proto(status))
