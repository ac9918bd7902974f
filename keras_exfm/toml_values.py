"""What is wrong with the values of a TOML file, as one line for each fault."""

from __future__ import annotations

import types
import typing
from typing import Any

from pydantic import BaseModel, ValidationError


def faults(model: type[BaseModel], error: ValidationError) -> list[str]:
    """One line for each fault: its place, what was expected, what was received.

    Args:
        model: What the values were checked against.
        error: What pydantic found. A key that is unknown is told with those that there are.
    """
    found = []
    for fault in error.errors():
        place = ".".join(str(part) for part in fault["loc"]) or "(top)"
        if fault["type"] == "extra_forbidden":
            keys = ", ".join(_keys(model, fault["loc"][:-1]))
            found.append(f"{place}: no such key. There are: {keys}")
        else:
            # Checks of our own say what they received; what misses a key is the whole table.
            told = fault["type"] in ("value_error", "missing")
            received = "" if told else f". Received: {_short(fault['input'])}"
            found.append(f"{place}: {fault['msg']}{received}")
    return found


def _keys(model: type[BaseModel], place: tuple[int | str, ...]) -> list[str]:
    kinds: list[Any] = [model]
    for part in place:
        kinds = [kind for each in kinds for kind in _within(each, part)]
    return [name for kind in kinds for name in kind.model_fields]


def _within(kind: Any, part: int | str) -> list[Any]:
    """The tables that may stand in a table of this kind, or in a list, under a key."""
    if _is_table(kind):
        if part in kind.model_fields:
            return _expanded(kind.model_fields[part].annotation)
        # The place of a table that comes in several kinds has the value that tells them apart.
        values = [typing.get_args(field.annotation) for field in kind.model_fields.values()]
        return [kind] if any(part in of for of in values) else []
    arguments = typing.get_args(kind)
    return _expanded(arguments[-1]) if arguments else []


def _expanded(annotation: Any) -> list[Any]:
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _expanded(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return [kind for each in typing.get_args(annotation) for kind in _expanded(each)]
    return [annotation] if _is_table(annotation) or origin in (dict, list) else []


def _is_table(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
