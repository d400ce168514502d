"""From a TOML document to frozen dataclasses, strictly: an unknown key or a wrong type is an error that names the key.

Every package keeps its settings in one dataclass with defaults; a section of the file is read with
``read_section(document, "prefill", PrefillSettings)``. Fields are of the types int, float, str, bool, or tuples of str.
"""

import dataclasses
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from cluster_core.errors import SettingsError

Settings = TypeVar("Settings")
Document = Mapping[str, Any]

SECTIONS = (
    "cluster",
    "model",
    "hash_model",
    "engine",
    "router",
    "prefill",
    "decode",
    "speculation",
    "transfer",
    "directory",
)
"""Every section a configuration file may have; ``cluster_configs/README.md`` explains each key once."""

MODEL_FOLDERS = (("model", "path"), ("speculation", "draft_model"))
"""The keys that name one, with their sections."""

_TYPE_NAMES = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}


def load_document(path: Path) -> Document:
    """Read a TOML file. Raises `SettingsError` when it is missing, is not TOML, or has a section nobody knows.

    Relative model folders are relative to the file's folder: what a configuration means does not depend on where a
    command is typed.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        message = f"{path}: cannot be read ({error.strerror}); name a configuration file that exists"
        raise SettingsError(message) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        message = f"{path}: not valid TOML ({error})"
        raise SettingsError(message) from error
    for name, section in document.items():
        if name not in SECTIONS:
            message = f"{path}: unknown section [{name}]; the sections are {', '.join(SECTIONS)}"
            raise SettingsError(message)
        if not isinstance(section, dict):
            message = f"{path}: {name} must be a section, [{name}]"
            raise SettingsError(message)
    for section, key in MODEL_FOLDERS:
        folder = document.get(section, {}).get(key)
        if isinstance(folder, str) and folder:
            document[section][key] = str((path.parent / Path(folder).expanduser()).resolve())
    return document


def read_section(document: Document, name: str, kind: type[Settings]) -> Settings:
    """Build ``kind`` from the section ``name``; keys that the file leaves out keep their defaults.

    Raises `SettingsError` for an unknown key, a wrong type, a missing key without a default, and for whatever the
    dataclass's own ``__post_init__`` refuses with a `ValueError` (its text must name the key).
    """
    section = document.get(name, {})
    hints = get_type_hints(kind)
    known = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]  # any settings dataclass
    for key in section:
        if key not in known:
            message = f"{name}.{key}: unknown key; [{name}] has {', '.join(known)}"
            raise SettingsError(message)
    values = {key: _checked(f"{name}.{key}", value, hints[key]) for key, value in section.items()}
    try:
        return kind(**values)
    except TypeError as error:
        missing = [
            field.name
            for field in dataclasses.fields(kind)  # type: ignore[arg-type]  # as above
            if field.name not in values and field.default is field.default_factory is dataclasses.MISSING
        ]
        message = f"{name}.{missing[0] if missing else '?'}: must be given"
        raise SettingsError(message) from error
    except ValueError as error:
        message = f"{name}.{error}"
        raise SettingsError(message) from error


def _checked(key: str, value: object, kind: type) -> object:
    if kind is float and type(value) is int:
        return float(value)
    if kind in _TYPE_NAMES and type(value) is not kind:
        message = f"{key}: must be {_TYPE_NAMES[kind]}, not {value!r}"
        raise SettingsError(message)
    if kind not in _TYPE_NAMES:
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            message = f"{key}: must be a list of strings, not {value!r}"
            raise SettingsError(message)
        return tuple(value)
    return value
