"""The parameter system: dataclass fields that name, type, describe, bound and default parameters.

Declaration on nodes, launch arguments, tables in the documents and command line options are made
from `specs_of` such a dataclass. Nothing here needs rclpy.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any, TypeVar

from pi05_ros import tables
from pi05_ros.errors import Pi05Error

T = TypeVar("T")
LARGEST_INTEGER = 2**63 - 1
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


class ParameterError(Pi05Error, ValueError):
    """A value that a parameter does not accept; the message names what is accepted."""


@dataclass(frozen=True)
class Spec:
    """What is known about one parameter besides its value."""

    name: str
    kind: type
    default: Any
    text: str
    read_only: bool
    within: tuple[float, float] | None = None
    choices: tuple[str, ...] = ()
    check: Callable[[Any], str | None] | None = None

    @property
    def type_name(self) -> str:
        """Type as ROS users call it."""
        names = {str: "string", bool: "bool", int: "integer", float: "double", tuple: "string[]"}
        return names[self.kind]

    @property
    def accepted(self) -> str:
        """Accepted values in words, empty if any value of the type is."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        if self.within is not None:
            return " to ".join(map(_number, self.within))
        return ""

    def convert(self, value: Any) -> Any:
        """Value in the declared type, or ParameterError.

        An integer is taken for a double, since ``rate_hz:=10`` is what people write, and for a
        string whose values may be numbers (``kv_reuse:=2``); no other type is reinterpreted.
        """
        if type(value) is int and abs(value) > LARGEST_INTEGER:
            raise ParameterError(
                f"{self.name} is {str(value)[:20]}..., which does not fit into 64 bits"
                + (f"; accepted: {self.accepted}" if self.accepted else "")
            )
        numeric = self.kind is float or (self.kind is str and self.default.isdecimal())
        if type(value) is int and numeric:
            value = self.kind(value)
        if type(value) in (int, float) and str(value) in self.choices:
            value = str(value)  # lerobot_era:=0.5 is a number to YAML
        if self.kind is tuple and isinstance(value, list | tuple):
            value = tuple(value)
            odd = [item for item in value if not isinstance(item, str)]
            if odd:
                raise ParameterError(
                    f"{self.name} holds {odd[0]!r:.80} ({type(odd[0]).__name__}); it must be a "
                    "list of strings"
                )
            self._validate(value)
            return value
        if type(value) is not self.kind:
            article = "an" if self.type_name == "integer" else "a"
            raise ParameterError(
                f"{self.name} is {value!r} ({type(value).__name__}); it must be {article} "
                f"{self.type_name}" + (f", {self.accepted}" if self.accepted else "")
            )
        self._validate(value)
        return value

    def read(self, text: str) -> Any:
        """Value of a text, as launch arguments and command line options have it.

        Lists are separated by commas.

        Raises:
            ParameterError: the text is no such value, or it is not accepted.

        """
        value: Any = text
        try:
            if self.kind in (int, float):
                value = self.kind(text)
            elif self.kind is bool:
                value = _BOOLEANS[text.strip().lower()]
            elif self.kind is tuple:
                value = tuple(item.strip() for item in text.split(","))
        except (ValueError, KeyError):
            words = {int: "a whole number", float: "a number", bool: "true or false"}
            raise ParameterError(
                f"{self.name}:={text} is not {words[self.kind]}"
                + (f"; accepted: {self.accepted}" if self.accepted else "")
            ) from None
        return self.convert(value)

    def _validate(self, value: Any) -> None:
        if self.choices and value not in self.choices:
            raise ParameterError(f"{self.name} is {value!r}; accepted: {', '.join(self.choices)}")
        low, high = self.within or (-math.inf, math.inf)
        if self.within and not (math.isfinite(value) and low <= value <= high):
            raise ParameterError(f"{self.name} is {value}; accepted: {self.accepted}")
        problem = self.check(value) if self.check is not None else None
        if problem:
            raise ParameterError(f"{self.name} is {_shown(value)}; {problem}")


def _number(value: float) -> str:
    if value == LARGEST_INTEGER:
        return "2^63-1"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _shown(value: Any) -> str:
    return repr(list(value) if isinstance(value, tuple) else value)


def param(
    default: Any,
    text: str,
    *,
    name: str | None = None,
    dynamic: bool = False,
    within: tuple[float, float] | None = None,
    choices: tuple[str, ...] = (),
    check: Callable[[Any], str | None] | None = None,
) -> Any:
    """Field of a dataclass of parameters.

    Args:
        default: also gives the type.
        text: what it is, for people.
        name: in ROS, if it differs from the field's.
        dynamic: may be set while the node runs.
        within: bounds of a number.
        choices: accepted words.
        check: returns what is wrong with a value, None if nothing is.

    """
    metadata = {
        "name": name, "text": text, "read_only": not dynamic,
        "within": within, "choices": choices, "check": check,
    }  # fmt: skip
    return field(default=default, metadata=metadata)


def specs_of(kind: type) -> dict[str, Spec]:
    """Specs of a dataclass of parameters by ROS name, in its order."""
    specs = (_spec(item) for item in fields(kind))
    return {spec.name: spec for spec in specs}


def from_values(kind: type[T], values: Mapping[str, Any]) -> T:
    """Dataclass from ROS names and values, each checked; a name that is absent is default.

    Raises:
        ParameterError: an unknown name, or a value that is not accepted.

    """
    specs = {item.name: _spec(item) for item in fields(kind)}  # type: ignore[arg-type]
    unknown = set(values) - {spec.name for spec in specs.values()}
    if unknown:
        raise ParameterError(f"unknown parameters: {', '.join(sorted(unknown))}")
    return kind(
        **{
            attribute: spec.convert(values.get(spec.name, spec.default))
            for attribute, spec in specs.items()
        }
    )


def to_values(parameters: Any) -> dict[str, Any]:
    """The inverse of `from_values`: plain values by ROS name."""
    return {
        spec.name: list(value) if isinstance(value, tuple) else value
        for attribute, spec in ((item.name, _spec(item)) for item in fields(parameters))
        for value in (getattr(parameters, attribute),)
    }


def _spec(item: Field[Any]) -> Spec:
    named = {**item.metadata, "name": item.metadata["name"] or item.name}
    return Spec(kind=type(item.default), default=item.default, **named)


def markdown_table(specs: Mapping[str, Spec]) -> str:
    """Table of all parameters of a node for the documentation."""
    head = ("parameter", "type", "default", "accepted", "set while running", "what it is")
    rows = []
    for spec in specs.values():
        if spec.kind is tuple:
            default = "`['']`"
        elif spec.kind is str:
            default = f"`{spec.default}`" if spec.default else "empty"
        else:
            default = f"{spec.default}"
        running = "no" if spec.read_only else "yes"
        cells = (f"`{spec.name}`", spec.type_name, default, spec.accepted, running, spec.text)
        rows.append(cells)
    return tables.markdown_table(head, rows)


def main(specs: Mapping[str, Spec], node: str, argv: list[str] | None = None) -> int:
    """Print the parameters of a node."""
    parser = argparse.ArgumentParser(description=f"parameters of the {node}")
    parser.add_argument("--markdown", action="store_true", help="print the documented table")
    args = parser.parse_args(argv)
    if args.markdown:
        sys.stdout.write(markdown_table(specs))
        return 0
    for spec in specs.values():
        print(f"{spec.name} ({spec.type_name}, default {spec.default!r}) {spec.accepted}")
    return 0
