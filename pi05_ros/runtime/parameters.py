"""Parameters of the policy node: one dataclass is the only place that names, types, describes,
bounds and defaults them.

The node declares from it, validates with it and reads into it; the README table is printed from
it: ``python -m pi05_ros.runtime.parameters --markdown``. Nothing here needs rclpy.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any

from pi05_ros.backends.create import BACKENDS
from pi05_ros.backends.engine import DENOISE_PRECISIONS, PRECISIONS
from pi05_ros.errors import Pi05Error
from pi05_ros.policy.chunking.kv_reuse import MODES, make_rule
from pi05_ros.policy.interface import MAX_SEED

TRANSPORTS = ("raw", "compressed")
RELIABILITIES = ("auto", "best_effort", "reliable")
ZERO_STAMPS = ("reject", "receive_time")


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
    low: float | int | None = None
    high: float | int | None = None
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
        if self.low is not None:
            return f"{_number(self.low)} to {_number(self.high)}"
        return ""

    def convert(self, value: Any) -> Any:
        """Value in the declared type, or ParameterError.

        An integer is taken for a double, since ``rate_hz:=10`` is what people write, and for a
        string whose values may be numbers (``kv_reuse:=2``); no other type is reinterpreted.
        """
        numeric = self.kind is float or (self.kind is str and self.default.isdecimal())
        if type(value) is int and numeric:
            value = self.kind(value)
        if self.kind is tuple and isinstance(value, list | tuple):
            value = tuple(value)
            if all(isinstance(item, str) for item in value):
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

    def _validate(self, value: Any) -> None:
        if self.choices and value not in self.choices:
            raise ParameterError(f"{self.name} is {value!r}; accepted: {', '.join(self.choices)}")
        bounded = self.low is not None and self.high is not None
        if bounded and not (math.isfinite(value) and self.low <= value <= self.high):
            raise ParameterError(f"{self.name} is {value}; accepted: {self.accepted}")
        problem = self.check(value) if self.check is not None else None
        if problem:
            raise ParameterError(f"{self.name} is {_shown(value)}; {problem}")


def _number(value: float | int | None) -> str:
    if value == MAX_SEED:
        return "2^63-1"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _shown(value: Any) -> str:
    return repr(list(value) if isinstance(value, tuple) else value)


def _check_roles(roles: tuple[str, ...]) -> str | None:
    given = [role for role in roles if role]
    if len(set(given)) != len(given):
        return "every camera role may be named once"
    return None


def _check_reuse(word: str) -> str | None:
    try:
        make_rule(word)
    except ValueError:
        return "accepted: a number of observations from 1, or dynamic"
    return None


def _param(
    default: Any,
    text: str,
    *,
    name: str | None = None,
    dynamic: bool = False,
    low: float | int | None = None,
    high: float | int | None = None,
    choices: tuple[str, ...] = (),
    check: Callable[[Any], str | None] | None = None,
) -> Any:
    metadata = {
        "name": name, "text": text, "read_only": not dynamic,
        "low": low, "high": high, "choices": choices, "check": check,
    }  # fmt: skip
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class PolicyParameters:
    """Every parameter of the policy node; dots in ROS names are underscores here."""

    checkpoint: str = _param(
        "",
        "Weights: a path (directory or safetensors file), or `random:tiny` / `random:pi05` for "
        "seeded random weights that must not move a robot. Required.",
    )
    robot: str = _param(
        "",
        "Robot profile: a name from config/robots or a path to a YAML file. Empty: the one the "
        "checkpoint brings, `sim_arm` for random weights.",
    )
    tokenizer: str = _param(
        "",
        "Path of the SentencePiece tokenizer. Empty: the one beside the checkpoint; random "
        "weights use bytes.",
    )
    backend: str = _param("auto", "What runs the model.", choices=BACKENDS)
    allow_fallback: bool = _param(
        False,
        "With backend `tensorrt`: run on another backend if there are no proven engines. "
        "`/diagnostics` then warns.",
    )
    precision_vision: str = _param(
        "auto", "Arithmetic of the vision stage.", name="precision.vision", choices=PRECISIONS
    )
    precision_prefill: str = _param(
        "auto", "Arithmetic of the prefill stage.", name="precision.prefill", choices=PRECISIONS
    )
    precision_denoise: str = _param(
        "auto",
        "Arithmetic of the denoise stage.",
        name="precision.denoise",
        choices=DENOISE_PRECISIONS,
    )
    device: str = _param("auto", "Torch device: `auto`, `cpu`, `cuda` or `cuda:1`.")
    threads: int = _param(
        0, "CPU threads of the model; 0 leaves the choice to torch.", low=0, high=1024
    )
    seed: int = _param(
        0,
        "Seed of the flow noise; chunk n of an activation is drawn with seed + n. (Random weights "
        "have theirs in the name: `random:tiny:7`.)",
        low=0,
        high=MAX_SEED,
    )
    denoise_steps: int = _param(
        10, "Flow integration steps per chunk.", dynamic=True, low=1, high=20
    )
    horizon: int = _param(
        0, "Steps kept of each chunk; 0 keeps all that the robot profile has.", low=0, high=1000
    )
    rate_hz: float = _param(
        10.0, "Inferences per second that are asked for.", dynamic=True, low=0.1, high=200.0
    )
    chunk_mode: str = _param(
        "plain",
        "How a chunk continues the one before: `plain` does not; `identity` (backends eager, "
        "cuda) and `vjp`, `vjp-scaled` (eager) guide the flow (real-time chunking), `trained` "
        "(eager, cuda) needs weights trained for it.",
        choices=MODES,
    )
    kv_reuse: str = _param(
        "1",
        "Vision and prefill are computed for every n-th observation, or `dynamic`: where a "
        "picture has changed much or the arm slows down, at most every second time. A KV cache is "
        "kept for half of a chunk's steps (see `horizon`) at most, whatever n says.",
        check=_check_reuse,
    )
    vision_cache_levels: int = _param(
        -1,
        "Keep a camera's image tokens while its picture changes by no more than this mean gray "
        "difference (0 to 255 levels; backends eager, cuda). -1: never.",
        low=-1,
        high=255,
    )
    overlap: bool = _param(
        False,
        "Start vision and prefill of the newest observation while the actions of the one before "
        "are still denoised (backends cuda, eager, onnx). More chunks per second where `rate_hz` "
        "asks for more than one inference after the other can give; each chunk comes later.",
    )
    prompt: str = _param(
        "",
        "What to do. The prompt topic sets it too, the last writer wins. Empty: the robot "
        "profile's default prompt.",
        dynamic=True,
    )
    camera_roles: tuple[str, ...] = _param(
        ("",),
        "Cameras that are subscribed to, all of which must deliver (base, wrist, wrist_2). "
        "Empty: all of the robot profile.",
        check=_check_roles,
    )
    camera_transport_base: str = _param(
        "raw",
        "Message of the base camera: Image on `base_camera/image_raw` or CompressedImage on "
        "`base_camera/image_raw/compressed`.",
        name="camera_transport.base",
        choices=TRANSPORTS,
    )
    camera_transport_wrist: str = _param(
        "raw", "The same for `wrist_camera`.", name="camera_transport.wrist", choices=TRANSPORTS
    )
    camera_transport_wrist_2: str = _param(
        "raw", "The same for `wrist_camera_2`.", name="camera_transport.wrist_2",
        choices=TRANSPORTS,
    )  # fmt: skip
    camera_reliability: str = _param(
        "auto",
        "QoS of the camera subscriptions. auto is reliable while every publisher of the topic is, "
        "otherwise best effort.",
        choices=RELIABILITIES,
    )
    max_age_s: float = _param(
        0.5,
        "Oldest sample (header stamp against the node's clock) that may start an inference.",
        dynamic=True,
        low=0.001,
        high=3600.0,
    )
    max_camera_age_s: float = _param(
        0.0, "max_age_s for cameras alone; 0 takes max_age_s.", dynamic=True, low=0.0, high=3600.0
    )
    max_joint_age_s: float = _param(
        0.0,
        "max_age_s for joint_states alone; 0 takes max_age_s.",
        dynamic=True,
        low=0.0,
        high=3600.0,
    )
    on_change_joints: tuple[str, ...] = _param(
        ("",),
        "Joints whose publisher speaks only when they change (some grippers): max_on_change_age_s "
        "holds for them instead of max_age_s, and the stamp of an observation is that of the "
        "others. A publisher that has not spoken since the node is configured is waited for.",
    )
    max_on_change_age_s: float = _param(
        60.0,
        "Oldest value of the joints in on_change_joints.",
        dynamic=True,
        low=0.001,
        high=86400.0,
    )
    max_skew_s: float = _param(
        0.25,
        "Largest distance between the stamps of the samples of one observation.",
        dynamic=True,
        low=0.001,
        high=3600.0,
    )
    future_tolerance_s: float = _param(
        0.05,
        "How far a stamp may lie ahead of the node's clock; more means unsynchronized clocks.",
        dynamic=True,
        low=0.0,
        high=3600.0,
    )
    zero_stamps: str = _param(
        "reject",
        "What to do with samples whose header stamp is 0: refuse them, or take the time of "
        "receipt (hides transport delay).",
        choices=ZERO_STAMPS,
    )
    dead_source_timeout_s: float = _param(
        2.0,
        "A source is dead after this time without a message (monotonic clock).",
        dynamic=True,
        low=0.05,
        high=3600.0,
    )
    max_answer_age_s: float = _param(
        1.0,
        "A chunk is dropped if the observation it answers is older than this when it is ready.",
        dynamic=True,
        low=0.001,
        high=3600.0,
    )
    camera_wait_s: float = _param(
        0.04,
        "At a tick, wait this long for the next frame of every camera so that the newest picture "
        "is used; at most half a period. 0 starts at once.",
        dynamic=True,
        low=0.0,
        high=1.0,
    )
    stop_timeout_s: float = _param(
        2.0,
        "How long deactivate, cleanup and shutdown wait for a running inference.",
        dynamic=True,
        low=0.0,
        high=3.0,
    )

    @classmethod
    def specs(cls) -> tuple[Spec, ...]:
        """All parameters in the order of the dataclass."""
        return tuple(_spec(item) for item in fields(cls))

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> PolicyParameters:
        """Dataclass from ROS names and values, each checked; a name that is absent is default."""
        unknown = set(values) - {spec.name for spec in cls.specs()}
        if unknown:
            raise ParameterError(f"unknown parameters: {', '.join(sorted(unknown))}")
        pairs = ((item.name, _spec(item)) for item in fields(cls))
        return cls(
            **{
                attribute: spec.convert(values.get(spec.name, spec.default))
                for attribute, spec in pairs
            }
        )

    def transport(self, role: str) -> str:
        """Transport of one camera role; roles without a parameter of their own are raw."""
        return str(getattr(self, f"camera_transport_{role}", "raw"))

    def max_age(self, source_is_camera: bool) -> float:
        """Age limit in seconds of a camera or of the joint states."""
        special = self.max_camera_age_s if source_is_camera else self.max_joint_age_s
        return special or self.max_age_s

    @property
    def roles(self) -> tuple[str, ...]:
        """Camera roles that were asked for, empty if the robot profile decides."""
        return tuple(role for role in self.camera_roles if role)


def _spec(item: Field[Any]) -> Spec:
    data = item.metadata
    return Spec(
        name=data["name"] or item.name,
        kind=type(item.default),
        default=item.default,
        text=data["text"],
        read_only=data["read_only"],
        low=data["low"],
        high=data["high"],
        choices=data["choices"],
        check=data["check"],
    )


SPECS: dict[str, Spec] = {spec.name: spec for spec in PolicyParameters.specs()}


def markdown_table(specs: Mapping[str, Spec] = SPECS) -> str:
    """Table of all parameters of a node for the documentation; the policy node's by default."""
    lines = ["| parameter | type | default | accepted | set while running | what it is |"]
    lines.append("|---|---|---|---|---|---|")
    for spec in specs.values():
        if spec.kind is tuple:
            default = "`['']`"
        elif spec.kind is str:
            default = f"`{spec.default}`" if spec.default else "empty"
        else:
            default = f"{spec.default}"
        running = "no" if spec.read_only else "yes"
        lines.append(
            f"| `{spec.name}` | {spec.type_name} | {default} | {spec.accepted} | {running} "
            f"| {spec.text} |"
        )
    return "\n".join(lines) + "\n"


def main(
    argv: list[str] | None = None,
    specs: Mapping[str, Spec] = SPECS,
    node: str = "policy node",
) -> int:
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


if __name__ == "__main__":
    sys.exit(main())
