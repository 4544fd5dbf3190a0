"""Parameters of a node that are read once at its start, declared from a frozen dataclass."""

from __future__ import annotations

from dataclasses import Field, field, fields
from typing import TYPE_CHECKING, Any, TypeVar

from pi05_ros.runtime.parameters import Spec

if TYPE_CHECKING:
    from rclpy.node import Node

T = TypeVar("T")


def param(default: Any, text: str, **rules: Any) -> Any:
    """Dataclass field with what `Spec` knows: ``rules`` are low, high, choices, check."""
    return field(default=default, metadata={"text": text, "rules": rules})


def specs_of(kind: type) -> dict[str, Spec]:
    """Specs of all fields of a dataclass made with `param`, by name."""
    return {item.name: _spec(item) for item in fields(kind)}


def _spec(item: Field[Any]) -> Spec:
    kind = tuple if isinstance(item.default, tuple) else type(item.default)
    return Spec(
        item.name, kind, item.default, item.metadata["text"], True, **item.metadata["rules"]
    )


def declare(node: Node, kind: type[T]) -> T:
    """Declare all parameters of a dataclass on a node and return their values.

    Raises:
        ParameterError: a value that is not accepted; the message names the accepted ones.

    """
    from pi05_ros.ros.parameter_server import descriptor, warn_about_typos

    values: dict[str, Any] = {}
    for spec in specs_of(kind).values():
        override = node._parameter_overrides.get(spec.name)
        value = spec.default if override is None or override.value is None else override.value
        if spec.kind is tuple and isinstance(value, list | tuple):
            value = tuple(item for item in value if item)  # [''] is how ROS says "none"
        values[spec.name] = spec.convert(value)
        shown = list(values[spec.name]) or [""] if spec.kind is tuple else values[spec.name]
        node.declare_parameter(spec.name, shown, descriptor(spec), ignore_override=True)
    warn_about_typos(node, values)
    return kind(**values)
