"""Checks of single values of a profile file; errors name the place and what is accepted."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Any, TypeVar

from pi05_ros.policy.errors import RobotProfileError

_E = TypeVar("_E", bound=IntEnum)


def closest(word: str, accepted: Sequence[str]) -> str:
    """Return a hint at the accepted word that resembles a wrong one most, or nothing."""
    match = difflib.get_close_matches(str(word), list(accepted), n=1)
    return f" (did you mean {match[0]!r}?)" if match else ""


def mapping(
    where: str, data: Any, accepted: Sequence[str], required: Sequence[str] = ()
) -> dict[str, Any]:
    """Check that a value is a mapping with accepted keys and all required ones."""
    if not isinstance(data, Mapping):
        raise RobotProfileError(
            f"{where} is {type(data).__name__}; accepted: a mapping with {', '.join(accepted)}"
        )
    for key in data:
        if key not in accepted:
            raise RobotProfileError(
                f"{where} has the unknown key {key!r}{closest(key, accepted)}; "
                f"accepted: {', '.join(accepted)}"
            )
    for key in required:
        if key not in data:
            raise RobotProfileError(f"{where} lacks the key {key!r}")
    return dict(data)


def listed(
    where: str, data: Mapping[str, Any], key: str, default: Sequence[Any] | None = None
) -> Sequence[Any]:
    """Return the list under a key."""
    value = data.get(key, default)
    if not isinstance(value, list | tuple):
        raise RobotProfileError(f"{where}: {key} is {value!r}; accepted: a list")
    return value


def text(where: str, value: Any) -> str:
    """Check that a value is text."""
    if not isinstance(value, str):
        raise RobotProfileError(f"{where} is {value!r}; accepted: text")
    return value


def optional_text(where: str, value: Any) -> str | None:
    """Check that a value is text or null."""
    return None if value is None else text(where, value)


def boolean(where: str, value: Any) -> bool:
    """Check that a value is true or false."""
    if not isinstance(value, bool):
        raise RobotProfileError(f"{where} is {value!r}; accepted: true, false")
    return value


def number(where: str, value: Any) -> float:
    """Check that a value is a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e300:
        raise RobotProfileError(f"{where} is {value!s:.50}; accepted: a finite number")
    return float(value)


def integer(where: str, value: Any) -> int:
    """Check that a value is a whole number."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise RobotProfileError(f"{where} is {value!r}; accepted: a whole number")
    return value


def enumerated(where: str, value: Any, kind: type[_E]) -> _E:
    """Return the member of an enumeration named by a value."""
    accepted = [member.name.lower() for member in kind]
    if not isinstance(value, str) or value not in accepted:
        raise RobotProfileError(
            f"{where} is {value!r}{closest(str(value), accepted)}; accepted: {', '.join(accepted)}"
        )
    return kind[value.upper()]
