"""Asks a server for its health, as a stranger does: on a connection of its own, and on no event loop."""

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cluster_rpc.limits import PUBLIC


def is_serving(address: str, timeout_s: float) -> bool:
    """Say whether ``address`` can be connected to and says within ``timeout_s`` seconds that it serves. Blocks."""
    with grpc.insecure_channel(address, options=PUBLIC.channel_options()) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=timeout_s)
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
