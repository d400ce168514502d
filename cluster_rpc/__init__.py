"""gRPC, in both directions: the protocol's messages, servers, channels, the error table, and the client."""
