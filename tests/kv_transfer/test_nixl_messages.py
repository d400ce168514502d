import numpy as np
import pytest

from cluster_core.errors import TransferFailed, WorkerLost
from kv_transfer.nixl_messages import Advert, Nudge, Space, Taken, decode, encode, pack_address, unpack_address

ENTRIES = np.array([(2**64 - 1, 2**47, 4096), (1, 2, 0)], np.uint64)


def test_an_advert_comes_back_as_it_was() -> None:
    space = Space(on_device=True, device=3)
    advert = decode(encode(Advert(space=space, regions=2, entries=ENTRIES, metadata=b"\0meta\xff")))
    assert isinstance(advert, Advert)
    assert (advert.space, advert.regions, advert.metadata) == (space, 2, b"\0meta\xff")
    assert np.array_equal(advert.entries, ENTRIES)


def test_tags_and_nudges_come_back() -> None:
    taken = decode(encode(Taken(tags=ENTRIES[:, 0])))
    assert isinstance(taken, Taken)
    assert taken.tags.tolist() == [2**64 - 1, 1]
    assert decode(encode(Nudge())) == Nudge()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x01",
        b"\x09" + bytes(11),
        encode(Advert(space=Space(), regions=0, entries=ENTRIES, metadata=b""))[:-1],
        encode(Taken(tags=ENTRIES[:, 0]))[:-1],
        b"\x02" + bytes(7) + b"\xff\xff\xff\xff",
    ],
)
def test_what_is_no_message_is_refused(data: bytes) -> None:
    with pytest.raises(TransferFailed):
        decode(data)


def test_an_address_names_its_agent() -> None:
    assert unpack_address(pack_address("0123456789abcdef", b"how")) == ("0123456789abcdef", b"how")


@pytest.mark.parametrize("address", [b"", b"loopback-1", b"NIX1" + b"a" * 16, b"NIX"])
def test_another_transports_address_is_refused(address: bytes) -> None:
    with pytest.raises(WorkerLost):
        unpack_address(address)
