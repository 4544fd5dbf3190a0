"""Declares the policy node's parameters from their dataclass and keeps one checked copy.

A bad value at start must not kill the process (rclpy raises at declare): it is remembered, the
default is declared in its place, and configure fails with the remembered line until it is fixed.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection
from typing import Any, TypeVar

from rcl_interfaces.msg import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    SetParametersResult,
)
from rclpy.node import Node
from rclpy.parameter import Parameter

from pi05_ros.runtime.parameter_specs import ParameterError, Spec, from_values, specs_of
from pi05_ros.runtime.parameters import SPECS, PolicyParameters
from pi05_ros.runtime.text import printable


def descriptor(spec: Spec) -> ParameterDescriptor:
    """What ``ros2 param describe`` shows."""
    result = ParameterDescriptor(description=spec.text, read_only=spec.read_only)
    if spec.within is not None:
        low, high = spec.within
        if spec.kind is int:
            result.integer_range = [IntegerRange(from_value=int(low), to_value=int(high), step=1)]
        else:
            result.floating_point_range = [
                FloatingPointRange(from_value=float(low), to_value=float(high), step=0.0)
            ]
    result.additional_constraints = spec.accepted
    return result


def warn_about_unknown(node: Node, names: Collection[str]) -> None:
    """Log each parameter given at start that the node does not have."""
    for name in node._parameter_overrides:
        # QoS overrides are declared with their topics.
        if name in names or node.has_parameter(name) or name.startswith("qos_overrides."):
            continue
        close = difflib.get_close_matches(name, names, n=1)
        node.get_logger().warning(
            printable(f"parameter '{name}' is unknown and ignored")
            + (f"; did you mean '{close[0]}'?" if close else "")
        )


def _ros_value(value: Any) -> Any:
    # An empty list has no type in ROS; [''] is the usual form of "none".
    return list(value or ("",)) if isinstance(value, tuple) else value


T = TypeVar("T")


class ParameterServer:
    """Declares, validates and reads the parameters of one node.

    Args:
        node: its owner; declared on at once.
        on_change: called with the new dataclass after a dynamic change.

    """

    def __init__(self, node: Node, on_change: Callable[[PolicyParameters], None]) -> None:
        self._node = node
        self._on_change = on_change
        self._start_errors: dict[str, str] = {}
        # No public way to see an override before declaring; the attribute is the same from
        # Humble to Kilted.
        overrides: dict[str, Parameter] = node._parameter_overrides
        for spec in SPECS.values():
            node.declare_parameter(
                spec.name,
                _ros_value(self._start_value(spec, overrides)),
                descriptor(spec),
                ignore_override=True,
            )
        warn_about_unknown(node, SPECS)
        self.current = self._read()
        node.add_on_set_parameters_callback(self._validate)
        # Both are absent on Humble: integers for doubles are refused there, and changes are
        # applied by the validation callback.
        if hasattr(node, "add_pre_set_parameters_callback"):
            node.add_pre_set_parameters_callback(self._coerce)
        self._has_post = hasattr(node, "add_post_set_parameters_callback")
        if self._has_post:
            node.add_post_set_parameters_callback(self._apply)

    def validated(self) -> PolicyParameters:
        """Return the current values, or raise ParameterError for a bad value given at start."""
        if self._start_errors:
            raise ParameterError("; ".join(self._start_errors.values()))
        return self.current

    def _start_value(self, spec: Spec, overrides: dict[str, Parameter]) -> Any:
        override = overrides.get(spec.name)
        if override is None or override.type_ == Parameter.Type.NOT_SET:
            return spec.default
        value = override.value
        try:
            return spec.convert(list(value) if spec.kind is tuple and _is_array(value) else value)
        except ParameterError as error:
            self._start_errors[spec.name] = f"parameter {error}"
            return spec.default

    def _read(self, changed: dict[str, Any] | None = None) -> PolicyParameters:
        values = {name: self._node.get_parameter(name).value for name in SPECS}
        return PolicyParameters.from_values({**values, **(changed or {})})

    def _coerce(self, parameters: list[Parameter]) -> list[Parameter]:
        """Take integers for doubles before rclpy compares types."""
        return [
            Parameter(item.name, value=float(item.value))
            if item.name in SPECS
            and SPECS[item.name].kind is float
            and item.type_ == Parameter.Type.INTEGER
            else item
            for item in parameters
        ]

    def _validate(self, parameters: list[Parameter]) -> SetParametersResult:
        ours = {item.name: item.value for item in parameters if item.name in SPECS}
        try:
            updated = self._read(ours)
        except ParameterError as error:
            return SetParametersResult(successful=False, reason=str(error))
        if ours and not self._has_post:
            self._update(ours, updated)
        return SetParametersResult(successful=True)

    def _apply(self, parameters: list[Parameter]) -> None:
        ours = {item.name: item.value for item in parameters if item.name in SPECS}
        if ours:
            self._update(ours, self._read())

    def _update(self, changed: dict[str, Any], updated: PolicyParameters) -> None:
        for name in changed:
            self._start_errors.pop(name, None)
        self.current = updated
        self._on_change(updated)


def _is_array(value: Any) -> bool:
    return not isinstance(value, str | bytes | int | float | bool) and value is not None


def declare(node: Node, kind: type[T]) -> T:
    """Declare all parameters of a dataclass on a node and return their values.

    Raises:
        ParameterError: a value that is not accepted; the message names the accepted ones.

    """
    values: dict[str, Any] = {}
    for spec in specs_of(kind).values():
        override = node._parameter_overrides.get(spec.name)
        value = spec.default if override is None or override.value is None else override.value
        if spec.kind is tuple and isinstance(value, list | tuple):
            value = tuple(item for item in value if item)  # [''] is how ROS says "none"
        values[spec.name] = spec.convert(value)
        shown = list(values[spec.name]) or [""] if spec.kind is tuple else values[spec.name]
        node.declare_parameter(spec.name, shown, descriptor(spec), ignore_override=True)
    warn_about_unknown(node, values)
    return from_values(kind, values)
