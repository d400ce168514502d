"""Channels by address, opened at first use and closed by name.

Closing a channel does not end the calls on it: grpc.aio keeps the connection until each of them is done or cancelled.
So whoever makes a call cancels it in a ``finally``; then a lost worker's channel can be given back (`discard`).
"""

from collections.abc import Callable

import grpc

from cluster_rpc.limits import INTERNAL, RpcLimits


def open_channel(address: str, limits: RpcLimits) -> grpc.aio.Channel:
    """Open a channel to ``host:port``. Connecting happens at the first call."""
    return grpc.aio.insecure_channel(address, options=limits.channel_options())


class ChannelPool:
    """One channel an address, made by ``open_at``. Belongs to the event loop that uses it."""

    def __init__(
        self,
        limits: RpcLimits = INTERNAL,
        open_at: Callable[[str, RpcLimits], grpc.aio.Channel] = open_channel,
    ) -> None:
        self._limits = limits
        self._open_at = open_at
        self._channels: dict[str, grpc.aio.Channel] = {}

    def get(self, address: str) -> grpc.aio.Channel:
        """Return the channel to ``address``. It belongs to the pool: callers do not close it."""
        channel = self._channels.get(address)
        if channel is None:
            channel = self._channels[address] = self._open_at(address, self._limits)
        return channel

    async def discard(self, address: str) -> None:
        """Close the channel to ``address``, if there is one; its calls have been cancelled by those who made them."""
        channel = self._channels.pop(address, None)
        if channel is not None:
            await channel.close(None)

    async def close(self) -> None:
        """Close every channel; their calls have been cancelled by those who made them."""
        while self._channels:
            _, channel = self._channels.popitem()
            await channel.close(None)
