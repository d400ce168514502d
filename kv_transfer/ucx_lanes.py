"""Asks UCX which of its transports an endpoint uses. ucxx does not pass the question on; UCX's own library answers it.

The structures are those of ``ucp.h`` (`ucp_ep_query`, since UCX 1.14); UCX fills in what the mask asks for alone. The
library has been loaded before, by ucxx: here it is only found again.
"""

import ctypes

_LIBRARY = "libucp.so.0"
_ASK_FOR_TRANSPORTS = 1 << 3
_MOST_TRANSPORTS = 16


class _Transport(ctypes.Structure):
    """``ucp_transport_entry_t``."""

    _fields_ = (("name", ctypes.c_char_p), ("device", ctypes.c_char_p))


class _Attributes(ctypes.Structure):
    """``ucp_ep_attr_t``."""

    _fields_ = (
        ("mask", ctypes.c_uint64),
        ("name", ctypes.c_char * 32),
        ("local_address", ctypes.c_char * 128),
        ("remote_address", ctypes.c_char * 128),
        ("entries", ctypes.POINTER(_Transport)),
        ("entry_count", ctypes.c_uint),
        ("entry_bytes", ctypes.c_size_t),
        ("user_data", ctypes.c_void_p),
    )


def endpoint_lanes(handle: int) -> tuple[str, ...]:
    """Return the names (``posix``, ``cma``, ``tcp``, ...) of what the endpoint ``handle`` uses; none where UCX is mute.

    An endpoint that has not carried a message yet may still use what it was set up with: TCP.
    """
    try:
        query = ctypes.CDLL(_LIBRARY).ucp_ep_query
    except (OSError, AttributeError):
        return ()
    query.argtypes = (ctypes.c_void_p, ctypes.POINTER(_Attributes))
    query.restype = ctypes.c_int
    entries = (_Transport * _MOST_TRANSPORTS)()
    attributes = _Attributes(
        mask=_ASK_FOR_TRANSPORTS,
        entries=entries,
        entry_count=_MOST_TRANSPORTS,
        entry_bytes=ctypes.sizeof(_Transport),
    )
    if query(handle, ctypes.byref(attributes)) != 0:
        return ()
    found = (entry.name for entry in entries[: min(attributes.entry_count, _MOST_TRANSPORTS)])
    return tuple(dict.fromkeys(name.decode() for name in found if name))
