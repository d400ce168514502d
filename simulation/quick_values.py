"""Lets frozen dataclasses be made in half the time, which a simulated request does three hundred times.

A frozen dataclass sets its fields by `object.__setattr__`, which asks at every field whether it may. What is put in the
place of its ``__init__`` here sets each slot by the slot's own setter: the same parameters, defaults and values, and
the same ``__post_init__``. Only while a simulation runs: the product's classes are left as they were.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from typing import Any

PACKAGES = frozenset(
    {
        "block_directory",
        "cluster_core",
        "cluster_rpc",
        "decode_worker",
        "inference_engine",
        "kv_transfer",
        "prefill_worker",
        "router",
        "simulation",
    }
)
GENERATED = "<string>"
"""The file of code that `dataclasses` has written."""


@contextmanager
def quick_values() -> Iterator[None]:
    """Make frozen dataclasses quickly within this block."""
    usual = {cls: cls.__dict__["__init__"] for cls, _ in _quick_inits()}
    for cls, quick in _quick_inits():
        cls.__init__ = quick  # type: ignore[misc]  # the purpose of this file
    try:
        yield
    finally:
        for cls, init in usual.items():
            cls.__init__ = init  # type: ignore[misc]  # as above


@cache
def _quick_inits() -> list[tuple[type, Callable[..., None]]]:
    """Return the classes whose ``__init__`` `dataclasses` has written for slots that nobody may set, and another."""
    modules = [module for name, module in sys.modules.items() if name.partition(".")[0] in PACKAGES]
    found = {value for module in modules for value in vars(module).values() if isinstance(value, type)}
    return [(cls, quick_init(cls)) for cls in found if _is_slow(cls)]


def _is_slow(cls: type) -> bool:
    if not is_dataclass(cls) or "__slots__" not in vars(cls) or "__init__" not in vars(cls):
        return False
    return bool(cls.__dataclass_params__.frozen) and cls.__init__.__code__.co_filename == GENERATED  # type: ignore[attr-defined]  # not in the stubs


def quick_init(cls: Any) -> Callable[..., None]:
    """Return an ``__init__`` that does what the class's own does."""
    names: dict[str, Any] = {"MISSING": MISSING}
    head, body = ["self"], list[str]()
    by_place = [each for each in fields(cls) if not each.kw_only]
    by_name = [each for each in fields(cls) if each.kw_only]
    for each in by_place:
        _add_field(cls, each, names, head, body)
    if any(each.init for each in by_name):
        head.append("*")
    for each in by_name:
        _add_field(cls, each, names, head, body)
    if hasattr(cls, "__post_init__"):
        body.append("self.__post_init__()")
    source = f"def __init__({', '.join(head)}):\n " + "\n ".join(body or ["pass"])
    exec(compile(source, f"<quick {cls.__qualname__}>", "exec"), names)  # noqa: S102  # as `dataclasses` itself does
    init: Callable[..., None] = names["__init__"]
    init.__qualname__, init.__annotations__ = cls.__init__.__qualname__, cls.__init__.__annotations__
    return init


def _add_field(cls: Any, each: "Field[Any]", names: dict[str, Any], head: list[str], body: list[str]) -> None:
    """Add a field to the parameters, and to the body the line that sets it."""
    name, value = each.name, each.name
    names[f"set_{name}"] = getattr(cls, name).__set__
    if each.default is not MISSING:
        names[f"default_{name}"] = each.default
        head += [f"{name}=default_{name}"] * each.init
        value = name if each.init else f"default_{name}"
    elif each.default_factory is not MISSING:
        names[f"make_{name}"] = each.default_factory
        head += [f"{name}=MISSING"] * each.init
        value = f"make_{name}() if {name} is MISSING else {name}" if each.init else f"make_{name}()"
    elif each.init:
        head.append(name)
    else:
        return
    body.append(f"set_{name}(self, {value})")
