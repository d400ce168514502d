"""Typed reading of a model folder's JSON files: a field that is missing or of the wrong type is an error naming it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from cluster_core.errors import ModelFolderError


def read_json_object(path: Path) -> dict[str, Any]:
    """Return the JSON object that ``path`` holds. Raises `ModelFolderError` when it cannot be read or is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        message = f"{path}: cannot be read ({error.strerror}); a model folder needs it"
        raise ModelFolderError(message) from error
    except ValueError as error:
        message = f"{path}: not valid JSON ({error}); download it again"
        raise ModelFolderError(message) from error
    if not isinstance(value, dict):
        message = f"{path}: must hold a JSON object; download it again"
        raise ModelFolderError(message)
    return value


class JsonFields:
    """The fields of one JSON object, read by type; null counts as absent. All raise `ModelFolderError`."""

    def __init__(self, values: Mapping[str, Any], place: str) -> None:
        self.values = values
        self._place = place

    def refuse(self, key: str, right: str) -> NoReturn:
        """Raise the error for the field ``key``, saying what would be right."""
        message = f"{self._place}: {key} is {self.values.get(key)!r}; {right}"
        raise ModelFolderError(message)

    def whole(self, key: str, default: int | None, low: int, high: int) -> int:
        """Return a whole number within ``low`` to ``high``; without a default the field must be there."""
        value = self.values.get(key)
        value = default if value is None else value
        if type(value) is not int or not low <= value <= high:
            self.refuse(key, f"it must be a whole number from {low} to {high}")
        return value

    def number(self, key: str, default: float | None, above: float = 0.0) -> float:
        """Return a finite number greater than ``above``."""
        value = self.values.get(key)
        value = default if value is None else value
        if not isinstance(value, int | float) or isinstance(value, bool) or not above < value < float("inf"):
            self.refuse(key, f"it must be a number greater than {above:g}")
        return float(value)

    def flag(self, key: str, *, default: bool) -> bool:
        """Return true or false."""
        value = self.values.get(key)
        value = default if value is None else value
        if type(value) is not bool:
            self.refuse(key, "it must be true or false")
        return value

    def within(self, key: str) -> "JsonFields | None":
        """Return the fields of the object ``key``, or None where there is none."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            self.refuse(key, "it must be an object")
        return JsonFields(value, f"{self._place}: {key}")

    def sequence(self, key: str) -> Sequence[Any] | None:
        """Return the list ``key``, or None where there is none."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, list):
            self.refuse(key, "it must be a list")
        return value
