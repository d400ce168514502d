"""How large messages may be and how connections are kept alive, for both ends."""

from dataclasses import dataclass

MEBIBYTE = 1024 * 1024

Options = tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RpcLimits:
    """Bounds of one kind of connection. What exceeds them is refused by gRPC before any code of ours runs."""

    message_bytes: int
    streams_per_connection: int = 256
    calls: int | None = None
    """Calls in progress on a server, all connections together; None: no bound of its own."""
    metadata_bytes: int = 8 * 1024
    keepalive_s: float = 10.0
    keepalive_timeout_s: float = 5.0

    def server_options(self) -> Options:
        """Return grpc.aio server options. The port is never shared: a second server on it must fail."""
        return (
            *self._shared_options(),
            ("grpc.so_reuseport", 0),
            ("grpc.max_concurrent_streams", self.streams_per_connection),
            ("grpc.http2.min_ping_interval_without_data_ms", 1000),
            ("grpc.http2.min_recv_ping_interval_without_data_ms", 1000),
        )

    def channel_options(self) -> Options:
        """Return grpc.aio channel options.

        No retries behind our back (a request could run twice), no proxy from the environment, quick reconnects, and
        no state shared with other channels of the process.
        """
        return (
            *self._shared_options(),
            ("grpc.enable_retries", 0),
            ("grpc.enable_http_proxy", 0),
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),
        )

    def _shared_options(self) -> Options:
        return (
            ("grpc.max_receive_message_length", self.message_bytes),
            ("grpc.max_send_message_length", self.message_bytes),
            ("grpc.max_metadata_size", self.metadata_bytes),
            ("grpc.absolute_max_metadata_size", 2 * self.metadata_bytes),
            ("grpc.keepalive_time_ms", int(self.keepalive_s * 1000)),
            ("grpc.keepalive_timeout_ms", int(self.keepalive_timeout_s * 1000)),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.max_pings_without_data", 0),
        )


PUBLIC = RpcLimits(message_bytes=4 * MEBIBYTE, calls=4096)
"""Between clients and the router."""

INTERNAL = RpcLimits(message_bytes=32 * MEBIBYTE, streams_per_connection=4096)
"""Between router and workers, and between workers."""
