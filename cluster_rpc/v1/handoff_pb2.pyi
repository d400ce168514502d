from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ImporterMessage(_message.Message):
    __slots__ = ("open", "pull", "accept", "reject", "fetch")
    OPEN_FIELD_NUMBER: _ClassVar[int]
    PULL_FIELD_NUMBER: _ClassVar[int]
    ACCEPT_FIELD_NUMBER: _ClassVar[int]
    REJECT_FIELD_NUMBER: _ClassVar[int]
    FETCH_FIELD_NUMBER: _ClassVar[int]
    open: OpenExport
    pull: PullBlocks
    accept: AcceptBlocks
    reject: RejectBlocks
    fetch: OpenFetch
    def __init__(self, open: _Optional[_Union[OpenExport, _Mapping]] = ..., pull: _Optional[_Union[PullBlocks, _Mapping]] = ..., accept: _Optional[_Union[AcceptBlocks, _Mapping]] = ..., reject: _Optional[_Union[RejectBlocks, _Mapping]] = ..., fetch: _Optional[_Union[OpenFetch, _Mapping]] = ...) -> None: ...

class OpenExport(_message.Message):
    __slots__ = ("request_id", "attempt", "exporter_incarnation", "importer", "importer_incarnation", "importer_transport_address", "layout", "binding", "wire")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    EXPORTER_INCARNATION_FIELD_NUMBER: _ClassVar[int]
    IMPORTER_FIELD_NUMBER: _ClassVar[int]
    IMPORTER_INCARNATION_FIELD_NUMBER: _ClassVar[int]
    IMPORTER_TRANSPORT_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    BINDING_FIELD_NUMBER: _ClassVar[int]
    WIRE_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    attempt: int
    exporter_incarnation: int
    importer: str
    importer_incarnation: int
    importer_transport_address: bytes
    layout: str
    binding: int
    wire: WireOffer
    def __init__(self, request_id: _Optional[str] = ..., attempt: _Optional[int] = ..., exporter_incarnation: _Optional[int] = ..., importer: _Optional[str] = ..., importer_incarnation: _Optional[int] = ..., importer_transport_address: _Optional[bytes] = ..., layout: _Optional[str] = ..., binding: _Optional[int] = ..., wire: _Optional[_Union[WireOffer, _Mapping]] = ...) -> None: ...

class WireOffer(_message.Message):
    __slots__ = ("format", "gain_s_per_byte")
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    GAIN_S_PER_BYTE_FIELD_NUMBER: _ClassVar[int]
    format: str
    gain_s_per_byte: float
    def __init__(self, format: _Optional[str] = ..., gain_s_per_byte: _Optional[float] = ...) -> None: ...

class OpenFetch(_message.Message):
    __slots__ = ("opening", "first_position", "hashes")
    OPENING_FIELD_NUMBER: _ClassVar[int]
    FIRST_POSITION_FIELD_NUMBER: _ClassVar[int]
    HASHES_FIELD_NUMBER: _ClassVar[int]
    opening: OpenExport
    first_position: int
    hashes: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, opening: _Optional[_Union[OpenExport, _Mapping]] = ..., first_position: _Optional[int] = ..., hashes: _Optional[_Iterable[bytes]] = ...) -> None: ...

class PullBlocks(_message.Message):
    __slots__ = ("tag", "positions")
    TAG_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    tag: int
    positions: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, tag: _Optional[int] = ..., positions: _Optional[_Iterable[int]] = ...) -> None: ...

class AcceptBlocks(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RejectBlocks(_message.Message):
    __slots__ = ("reason", "positions")
    REASON_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    reason: str
    positions: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, reason: _Optional[str] = ..., positions: _Optional[_Iterable[int]] = ...) -> None: ...

class ExporterMessage(_message.Message):
    __slots__ = ("opened", "sealed", "finished", "failed")
    OPENED_FIELD_NUMBER: _ClassVar[int]
    SEALED_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    opened: ExportOpened
    sealed: BlocksSealed
    finished: ExportFinished
    failed: ExportFailed
    def __init__(self, opened: _Optional[_Union[ExportOpened, _Mapping]] = ..., sealed: _Optional[_Union[BlocksSealed, _Mapping]] = ..., finished: _Optional[_Union[ExportFinished, _Mapping]] = ..., failed: _Optional[_Union[ExportFailed, _Mapping]] = ...) -> None: ...

class ExportOpened(_message.Message):
    __slots__ = ("lease_s", "exporter_transport_address", "wire_format", "waited_s")
    LEASE_S_FIELD_NUMBER: _ClassVar[int]
    EXPORTER_TRANSPORT_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    WIRE_FORMAT_FIELD_NUMBER: _ClassVar[int]
    WAITED_S_FIELD_NUMBER: _ClassVar[int]
    lease_s: float
    exporter_transport_address: bytes
    wire_format: str
    waited_s: float
    def __init__(self, lease_s: _Optional[float] = ..., exporter_transport_address: _Optional[bytes] = ..., wire_format: _Optional[str] = ..., waited_s: _Optional[float] = ...) -> None: ...

class BlocksSealed(_message.Message):
    __slots__ = ("blocks", "finished", "filled_s", "pulled_s")
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    FILLED_S_FIELD_NUMBER: _ClassVar[int]
    PULLED_S_FIELD_NUMBER: _ClassVar[int]
    blocks: _containers.RepeatedCompositeFieldContainer[BlockReference]
    finished: ExportFinished
    filled_s: float
    pulled_s: float
    def __init__(self, blocks: _Optional[_Iterable[_Union[BlockReference, _Mapping]]] = ..., finished: _Optional[_Union[ExportFinished, _Mapping]] = ..., filled_s: _Optional[float] = ..., pulled_s: _Optional[float] = ...) -> None: ...

class ExportFinished(_message.Message):
    __slots__ = ("first_token_id", "fork_token_ids", "ended_s")
    FIRST_TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    FORK_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    ENDED_S_FIELD_NUMBER: _ClassVar[int]
    first_token_id: int
    fork_token_ids: _containers.RepeatedScalarFieldContainer[int]
    ended_s: float
    def __init__(self, first_token_id: _Optional[int] = ..., fork_token_ids: _Optional[_Iterable[int]] = ..., ended_s: _Optional[float] = ...) -> None: ...

class ExportFailed(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class BlockReference(_message.Message):
    __slots__ = ("position", "index", "generation", "hash", "digest", "tokens")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    position: int
    index: int
    generation: int
    hash: bytes
    digest: bytes
    tokens: int
    def __init__(self, position: _Optional[int] = ..., index: _Optional[int] = ..., generation: _Optional[int] = ..., hash: _Optional[bytes] = ..., digest: _Optional[bytes] = ..., tokens: _Optional[int] = ...) -> None: ...
