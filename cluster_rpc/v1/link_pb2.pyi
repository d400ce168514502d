from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CalibrateLinkRequest(_message.Message):
    __slots__ = ("worker_id", "incarnation", "address")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    incarnation: int
    address: str
    def __init__(self, worker_id: _Optional[str] = ..., incarnation: _Optional[int] = ..., address: _Optional[str] = ...) -> None: ...

class LinkReport(_message.Message):
    __slots__ = ("peer", "incarnation", "transport", "lane", "expected_lane", "same_host", "call_s", "round_trip_s", "small_in_bytes_per_s", "large_in_bytes_per_s", "small_out_bytes_per_s", "large_out_bytes_per_s", "copy_bytes_per_s", "fixed_s", "bytes_per_s", "imports", "blocks_in_flight", "warning", "cure", "measured", "settled", "rounded_bytes_per_s")
    PEER_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    TRANSPORT_FIELD_NUMBER: _ClassVar[int]
    LANE_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_LANE_FIELD_NUMBER: _ClassVar[int]
    SAME_HOST_FIELD_NUMBER: _ClassVar[int]
    CALL_S_FIELD_NUMBER: _ClassVar[int]
    ROUND_TRIP_S_FIELD_NUMBER: _ClassVar[int]
    SMALL_IN_BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    LARGE_IN_BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    SMALL_OUT_BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    LARGE_OUT_BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    COPY_BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    FIXED_S_FIELD_NUMBER: _ClassVar[int]
    BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    IMPORTS_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    WARNING_FIELD_NUMBER: _ClassVar[int]
    CURE_FIELD_NUMBER: _ClassVar[int]
    MEASURED_FIELD_NUMBER: _ClassVar[int]
    SETTLED_FIELD_NUMBER: _ClassVar[int]
    ROUNDED_BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    peer: str
    incarnation: int
    transport: str
    lane: str
    expected_lane: str
    same_host: bool
    call_s: float
    round_trip_s: float
    small_in_bytes_per_s: float
    large_in_bytes_per_s: float
    small_out_bytes_per_s: float
    large_out_bytes_per_s: float
    copy_bytes_per_s: float
    fixed_s: float
    bytes_per_s: float
    imports: int
    blocks_in_flight: int
    warning: str
    cure: str
    measured: int
    settled: bool
    rounded_bytes_per_s: float
    def __init__(self, peer: _Optional[str] = ..., incarnation: _Optional[int] = ..., transport: _Optional[str] = ..., lane: _Optional[str] = ..., expected_lane: _Optional[str] = ..., same_host: _Optional[bool] = ..., call_s: _Optional[float] = ..., round_trip_s: _Optional[float] = ..., small_in_bytes_per_s: _Optional[float] = ..., large_in_bytes_per_s: _Optional[float] = ..., small_out_bytes_per_s: _Optional[float] = ..., large_out_bytes_per_s: _Optional[float] = ..., copy_bytes_per_s: _Optional[float] = ..., fixed_s: _Optional[float] = ..., bytes_per_s: _Optional[float] = ..., imports: _Optional[int] = ..., blocks_in_flight: _Optional[int] = ..., warning: _Optional[str] = ..., cure: _Optional[str] = ..., measured: _Optional[int] = ..., settled: _Optional[bool] = ..., rounded_bytes_per_s: _Optional[float] = ...) -> None: ...

class ProbeQuestion(_message.Message):
    __slots__ = ("hello", "send", "receive")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    SEND_FIELD_NUMBER: _ClassVar[int]
    RECEIVE_FIELD_NUMBER: _ClassVar[int]
    hello: ProbeHello
    send: ProbeBurst
    receive: ProbeBurst
    def __init__(self, hello: _Optional[_Union[ProbeHello, _Mapping]] = ..., send: _Optional[_Union[ProbeBurst, _Mapping]] = ..., receive: _Optional[_Union[ProbeBurst, _Mapping]] = ...) -> None: ...

class ProbeAnswer(_message.Message):
    __slots__ = ("hello", "ready", "took")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    TOOK_FIELD_NUMBER: _ClassVar[int]
    hello: ProbeHello
    ready: ProbeReady
    took: ProbeTook
    def __init__(self, hello: _Optional[_Union[ProbeHello, _Mapping]] = ..., ready: _Optional[_Union[ProbeReady, _Mapping]] = ..., took: _Optional[_Union[ProbeTook, _Mapping]] = ...) -> None: ...

class ProbeHello(_message.Message):
    __slots__ = ("worker_id", "incarnation", "meant", "transport", "transport_address", "host", "cuda", "rdma")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    MEANT_FIELD_NUMBER: _ClassVar[int]
    TRANSPORT_FIELD_NUMBER: _ClassVar[int]
    TRANSPORT_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    CUDA_FIELD_NUMBER: _ClassVar[int]
    RDMA_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    incarnation: int
    meant: int
    transport: str
    transport_address: bytes
    host: str
    cuda: bool
    rdma: bool
    def __init__(self, worker_id: _Optional[str] = ..., incarnation: _Optional[int] = ..., meant: _Optional[int] = ..., transport: _Optional[str] = ..., transport_address: _Optional[bytes] = ..., host: _Optional[str] = ..., cuda: _Optional[bool] = ..., rdma: _Optional[bool] = ...) -> None: ...

class ProbeBurst(_message.Message):
    __slots__ = ("tag", "message_bytes", "count")
    TAG_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    tag: int
    message_bytes: int
    count: int
    def __init__(self, tag: _Optional[int] = ..., message_bytes: _Optional[int] = ..., count: _Optional[int] = ...) -> None: ...

class ProbeReady(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ProbeTook(_message.Message):
    __slots__ = ("seconds",)
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    seconds: float
    def __init__(self, seconds: _Optional[float] = ...) -> None: ...
