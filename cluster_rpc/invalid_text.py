"""Which string field of a message holds bytes that are not UTF-8.

Protobuf refuses such a message as a whole and does not say where. A client that does not check its strings (C++, or
bytes written by hand) can send one, and deserves the field's name. This walks the wire format along the message's
descriptor, only after parsing has failed.
"""

from collections.abc import Iterator
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor

_VARINT, _FIXED64, _DELIMITED, _FIXED32 = 0, 1, 2, 5


def find_invalid_text(descriptor: Descriptor, message: bytes) -> str | None:
    """Return the path of the first string that is not UTF-8, such as ``chat.messages[2].content``; None if none is."""
    seen: dict[int, int] = {}
    try:
        for number, value in _delimited_fields(message):
            field: Any = descriptor.fields_by_number.get(number)
            if field is None:
                continue
            index = seen[number] = seen.get(number, -1) + 1
            path = f"{field.name}[{index}]" if field.is_repeated else field.name
            if field.type == FieldDescriptor.TYPE_STRING and not _is_utf8(value):
                return path
            if field.type == FieldDescriptor.TYPE_MESSAGE:
                inner = find_invalid_text(field.message_type, value)
                if inner is not None:
                    return f"{path}.{inner}"
    except (IndexError, ValueError):
        return None
    return None


def _delimited_fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (field number, bytes) of the length-delimited fields. Raises IndexError or ValueError where it is cut."""
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            _, position = _varint(message, position)
        elif kind in {_FIXED64, _FIXED32}:
            position += 8 if kind == _FIXED64 else 4
        elif kind == _DELIMITED:
            length, position = _varint(message, position)
            if position + length > len(message):
                raise IndexError(length)
            yield number, message[position : position + length]
            position += length
        else:
            raise ValueError(kind)


def _varint(message: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError(position)


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True
