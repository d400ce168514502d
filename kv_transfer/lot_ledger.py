"""Who awaits which tags, and who has them: brings offers and arrivals together.

For a transport whose sender only says what it has (an `Offer`) and whose receiver then fetches the bytes. An
**arrival** is a lot that somebody awaits. Whichever of the two comes first waits here; the parts that have met (a
`Match`) are the transport's to fetch. Nothing here moves bytes.
"""

from asyncio import Future
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from cluster_core.errors import LegFailed
from kv_transfer.lots import Landed
from kv_transfer.rows import RowsAt

Places: TypeAlias = "slice | NDArray[np.intp]"
"""Some places of a lot: what a NumPy array can be indexed with."""


@dataclass(slots=True, eq=False)
class Tags:
    """The tags of a lot: ``first`` and those that follow, or ``first`` plus each of ``numbers``."""

    first: int
    count: int
    numbers: Sequence[int] | None = None

    def shared_with(self, other: "Tags") -> tuple[Places, Places, int] | None:
        """Return the places of the tags that both have, here and there in the same order, and their number."""
        if self.numbers is None and other.numbers is None:
            begin = max(self.first, other.first)
            count = min(self.first + self.count, other.first + other.count) - begin
            if count <= 0:
                return None
            here, there = begin - self.first, begin - other.first
            return slice(here, here + count), slice(there, there + count), count
        shared, mine, others = np.intersect1d(_array(self), _array(other), assume_unique=True, return_indices=True)
        return (mine, others, len(shared)) if len(shared) else None


def _array(tags: Tags) -> NDArray[np.uint64]:
    numbers = range(tags.count) if tags.numbers is None else tags.numbers
    return np.asarray(numbers, dtype=np.uint64) + np.uint64(tags.first)


def tags_of(first: int, numbers: Sequence[int]) -> Tags:
    """Return the tags ``first + number``."""
    if isinstance(numbers, range) and numbers.step == 1:
        return Tags(first + numbers.start, len(numbers))
    listed = as_list(numbers)
    begin = listed[0] if listed else 0
    if listed == list(range(begin, begin + len(listed))):
        return Tags(first + begin, len(listed))
    return Tags(first, len(listed), listed)


def as_list(numbers: Sequence[int]) -> list[int]:
    """Return ``numbers``, which may be an array, as Python's integers."""
    return numbers.tolist() if isinstance(numbers, np.ndarray) else list(numbers)


def places_in(places: Places, count: int) -> Sequence[int]:
    """Return ``places`` of a lot of ``count`` one by one."""
    return range(*places.indices(count)) if isinstance(places, slice) else places.tolist()


def chosen(numbers: Sequence[int], places: Places) -> Sequence[int]:
    """Return those of ``numbers`` that are at ``places``."""
    return numbers[places] if isinstance(places, slice) else [numbers[place] for place in places]


def part_of(rows: RowsAt, places: Places) -> RowsAt:
    """Return those of ``rows`` that are at ``places``."""
    if isinstance(places, slice) and places.stop - places.start == len(rows.indices):
        return rows
    return RowsAt(rows.base, rows.stride, rows.row_bytes, chosen(rows.indices, places))


@dataclass(slots=True, eq=False, kw_only=True)
class Offer:
    """Rows that a sender has."""

    source: Any
    """Whom to tell when they are fetched, or that nobody will."""
    number: int
    """Its name there."""
    tags: Tags
    rows: RowsAt
    content: NDArray[np.uint8] | None = None
    """The rows themselves, where they came along."""
    unmet: int = field(init=False)
    unfetched: int = field(init=False)
    withdrawn: bool = False
    unreadable: bool = False

    def __post_init__(self) -> None:
        """Nothing is fetched yet."""
        self.unmet = self.unfetched = self.tags.count


@dataclass(slots=True, eq=False, kw_only=True)
class Arrival:
    """A lot that is awaited."""

    owner: Any
    """The peer that it was posted on."""
    matrix: NDArray[np.uint8]
    rows: RowsAt
    """Where in it they land."""
    tags: Tags
    landed: Landed
    done: "Future[None]"
    unmet: int = field(init=False)
    missing: int = field(init=False)
    """Rows that have not landed."""
    over: bool = False
    """It was aborted: no copy for it may begin any more."""
    reading: int = 0
    """Copies that are under way where an abort cannot end them."""
    failure: LegFailed | None = None
    """Why it was aborted."""

    def __post_init__(self) -> None:
        """Nothing has come yet."""
        self.unmet = self.missing = self.tags.count


class Offered(Protocol):
    """What the ledger needs of an offer."""

    tags: Tags
    unmet: int
    """How many of them nobody has awaited yet."""


OfferedT = TypeVar("OfferedT", bound=Offered)


@dataclass(slots=True, eq=False, kw_only=True)
class Match(Generic[OfferedT]):
    """Rows ``offered`` of ``offer`` belong at ``places`` of ``arrival``."""

    offer: OfferedT
    offered: Places
    arrival: Arrival
    places: Places
    count: int


class LotLedger(Generic[OfferedT]):
    """One worker's offers and arrivals that have not met altogether."""

    def __init__(self) -> None:
        self._arrivals: dict[Arrival, None] = {}
        self._whole: dict[int, Arrival] = {}
        """By their first tags the arrivals of consecutive tags that have met nothing yet: mostly one offer has all."""
        self._offers: dict[OfferedT, None] = {}

    def post(self, arrival: Arrival) -> list[Match[OfferedT]]:
        """Await a lot; return what of it has been offered before."""
        self._arrivals[arrival] = None
        if arrival.tags.numbers is None:
            self._whole[arrival.tags.first] = arrival
        return self._meet([(offer, arrival) for offer in self._offers]) if self._offers else []

    def take(self, offer: OfferedT) -> list[Match[OfferedT]]:
        """Take an offer; return what of it is awaited."""
        self._offers[offer] = None
        return self._meet([(offer, arrival) for arrival in self._arrivals])

    def whole(self, first: int, count: int) -> Arrival | None:
        """Return the arrival that awaits just ``count`` tags from ``first`` on, and has met none of them."""
        arrival = self._whole.get(first)
        return arrival if arrival is not None and arrival.tags.count == count else None

    def arrivals(self) -> list[Arrival]:
        """Return what has not met altogether."""
        return list(self._arrivals)

    def forget(self, arrival: Arrival) -> None:
        """Await it no longer."""
        self._arrivals.pop(arrival, None)
        if self._whole.get(arrival.tags.first) is arrival:
            del self._whole[arrival.tags.first]

    def drop(self, unwanted: Callable[[OfferedT], bool]) -> list[OfferedT]:
        """Forget the offers that are ``unwanted``, as far as they have not met; returns them."""
        dropped = [offer for offer in self._offers if unwanted(offer)]
        for offer in dropped:
            del self._offers[offer]
        return dropped

    def _meet(self, pairs: Iterable[tuple[OfferedT, Arrival]]) -> list[Match[OfferedT]]:
        matches = []
        for offer, arrival in pairs:
            if (shared := offer.tags.shared_with(arrival.tags)) is None:
                continue
            offered, places, count = shared
            matches.append(Match(offer=offer, offered=offered, arrival=arrival, places=places, count=count))
            offer.unmet -= count
            arrival.unmet -= count
            if offer.unmet <= 0:
                self._offers.pop(offer, None)
            if arrival.unmet <= 0:
                self.forget(arrival)
            elif self._whole.get(arrival.tags.first) is arrival:
                del self._whole[arrival.tags.first]
        return matches
