"""Why a step cannot give some of its slices what they ask for, while the others are sound."""

from collections.abc import Sequence
from enum import Enum, auto

from cluster_core.errors import BatonError, InvalidField, ModelFolderError


class BrokenLogits(ModelFolderError):
    """The model's output is not finite for these rows, or slices; the others are sound but were not drawn."""

    def __init__(self, places: tuple[int, ...]) -> None:
        super().__init__("the model's logits are not finite numbers: its weights, or the blocks it read, are broken")
        self.places = places


class NothingAllowed(InvalidField):
    """What these rows, or slices, forbid leaves no token to be drawn; the others are sound but were not drawn."""

    def __init__(self, places: tuple[int, ...]) -> None:
        super().__init__(
            "sampling",
            "grammar, allowed and banned tokens leave no token that the answer could go on with; forbid less",
        )
        self.places = places


class NotDrawn(InvalidField):
    """These slices ask for what the model cannot do; nothing was computed for any slice."""

    def __init__(self, field: str, reason: str, places: tuple[int, ...]) -> None:
        super().__init__(field, reason)
        self.places = places


class Fault(Enum):
    """Why nothing could be drawn."""

    BROKEN = auto()
    NOTHING_ALLOWED = auto()

    def of(self, places: tuple[int, ...]) -> BatonError:
        """Return the error that tells it of these rows or slices."""
        return BrokenLogits(places) if self is Fault.BROKEN else NothingAllowed(places)


def raise_faults(drawn: Sequence[object]) -> None:
    """Raise the error of the first kind of fault there is, with the places of all of that kind."""
    for fault in Fault:
        places = tuple(place for place, entry in enumerate(drawn) if entry is fault)
        if places:
            raise fault.of(places)
