"""Requests: frozen dataclasses whose fields are the options of a command.

`option` says beside the default what the option is called, accepts and means; `add_options` makes
argparse's options of it and `filled` the request of what was parsed. This imports nothing heavy.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable
from dataclasses import MISSING, Field, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

T = TypeVar("T")
REQUIRED: Any = MISSING
"""Default of an option that has none: it is given by its place."""
_TYPES: dict[str, Callable[[str], Any]] = {"int": int, "float": float, "Path": Path}


def positive(text: str) -> int:
    """Type of an option: a whole number from 1."""
    if not (text.isascii() and text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not accepted: a whole number from 1")
    return int(text)


def words(text: str) -> tuple[str, ...]:
    """Type of an option: several words in one text, quoted as in a shell."""
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None


def option(default: Any, text: str = "", *flags: str, **details: Any) -> Any:
    """Field that is an option.

    Args:
        default: `REQUIRED` for an argument; True for an option ``--no-...`` that takes it away.
        text: help.
        flags: ``--name`` of the option, if it is not that of the field.
        details: further arguments of `argparse.ArgumentParser.add_argument`.

    """
    return field(default=default, metadata={"text": text, "flags": flags, "details": details})


def add_options(parser: argparse._ActionsContainer, kind: type) -> None:
    """Add the options of a request, and of the requests that it holds."""
    for item, inner in _fields(kind):
        if inner is not None:
            add_options(parser, inner)
        elif "flags" in item.metadata:
            _add(parser, item)


def _fields(kind: type) -> list[tuple[Field[Any], type | None]]:
    """Fields of a request, each with its type if that is a request as well."""
    hints = get_type_hints(kind)
    inner: dict[str, Any] = {n: hint for n, hint in hints.items() if is_dataclass(hint)}
    return [(item, inner.get(item.name)) for item in fields(kind)]


def _add(parser: argparse._ActionsContainer, item: Field[Any]) -> None:
    details: dict[str, Any] = {"help": item.metadata["text"]}
    flags = item.metadata["flags"]
    if item.default is MISSING:
        parser.add_argument(item.name, **details | item.metadata["details"])
        return
    word = item.name.replace("_", "-")
    details["dest"] = item.name
    if isinstance(item.default, bool):
        details["action"] = "store_false" if item.default else "store_true"
        flags = flags or (f"--no-{word}" if item.default else f"--{word}",)
    else:
        tuples = isinstance(item.default, tuple)
        details["default"] = list(item.default) if tuples else item.default
        of = _TYPES.get(str(item.type).removeprefix("tuple[").partition(" ")[0].partition(",")[0])
        details |= {"type": of} if of else {}
    parser.add_argument(*(flags or (f"--{word}",)), **details | item.metadata["details"])


def filled(kind: type[T], source: Any, **others: Any) -> T:
    """Dataclass filled from the attributes of another object; lists become tuples.

    Args:
        kind: dataclass; a field that `source` lacks keeps its default, one that is a request is
            filled as well.
        source: parsed options, or parameters.
        others: fields that have another name or meaning there.

    """
    given: dict[str, Any] = {}
    for item, inner in _fields(kind):
        if item.name in others:
            given[item.name] = others[item.name]
        elif inner is not None:
            given[item.name] = filled(inner, source)
        elif hasattr(source, item.name):
            value = getattr(source, item.name)
            given[item.name] = tuple(value) if isinstance(value, list) else value
    return kind(**given)
