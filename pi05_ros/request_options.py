"""Requests: frozen dataclasses whose fields are the options of a command.

`option` says beside the default what an option is called, accepts and means; `cli.common_options`
gives them to argparse, and `filled` makes the request of what was parsed. This imports nothing
heavy.
"""

from __future__ import annotations

import shlex
from dataclasses import MISSING, Field, field, fields, is_dataclass
from typing import Any, TypeVar, get_type_hints

from pi05_ros.errors import InvalidValueError

T = TypeVar("T")
REQUIRED: Any = MISSING
"""Default of an option that has none: it is given by its place."""


def positive(text: str) -> int:
    """Type of an option: a whole number from 1."""
    if not (text.isascii() and text.isdecimal() and int(text) > 0):
        raise InvalidValueError(f"{text!r} is not accepted: a whole number from 1")
    return int(text)


def words(text: str) -> tuple[str, ...]:
    """Type of an option: several words in one text, quoted as in a shell."""
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise InvalidValueError(f"{text!r}: {error}") from None


def option(
    default: Any,
    text: str = "",
    *flags: str,
    within: tuple[float, float] | None = None,
    **details: Any,
) -> Any:
    """Field that is an option.

    Args:
        default: `REQUIRED` for an argument; True for an option ``--no-...`` that takes it away.
        text: help.
        flags: ``--name`` of the option, if it is not that of the field.
        within: bounds of a number, see `require_within`.
        details: further arguments of `argparse.ArgumentParser.add_argument`.

    """
    metadata = {"text": text, "flags": flags, "within": within, "details": details}
    return field(default=default, metadata=metadata)


def require_within(request: Any) -> None:
    """Raise InvalidValueError for a number of a request beyond its bounds."""
    for item in fields(request):
        value, bounds = getattr(request, item.name), item.metadata.get("within")
        if bounds and not bounds[0] <= value <= bounds[1]:
            flag = item.name.replace("_", "-")
            raise InvalidValueError(
                f"--{flag} is {value}; accepted: {bounds[0]:g} to {bounds[1]:g}"
            )


def typed_fields(kind: type) -> list[tuple[Field[Any], Any]]:
    """Fields of a dataclass with their types."""
    hints = get_type_hints(kind)
    return [(item, hints[item.name]) for item in fields(kind)]


def filled(kind: type[T], source: Any, **others: Any) -> T:
    """Dataclass filled from the attributes of another object; lists become tuples.

    Args:
        kind: dataclass; a field that `source` lacks keeps its default, one that is a request is
            filled as well.
        source: parsed options, or parameters.
        others: fields that have another name or meaning there.

    """
    given: dict[str, Any] = {}
    for item, hint in typed_fields(kind):
        if item.name in others:
            given[item.name] = others[item.name]
        elif is_dataclass(hint):
            given[item.name] = filled(hint, source)  # type: ignore[arg-type]
        elif hasattr(source, item.name):
            value = getattr(source, item.name)
            given[item.name] = tuple(value) if isinstance(value, list) else value
    return kind(**given)
