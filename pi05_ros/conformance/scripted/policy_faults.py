"""Faults of the robot's messages, and the counter of the policy node that must tell each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sensor_msgs.msg import Image

from pi05_ros.conformance.heard import NS
from pi05_ros.conformance.scripted.testbed import (
    JOINTS,
    START,
    Testbed,
    joint_state,
    jpeg,
    picture,
)

SAMPLES = "Which samples are used"


@dataclass(frozen=True)
class Fault:
    """A fault of one source, and the counter that must rise."""

    name: str
    source: str
    counter: str
    sentence: str
    make: Callable[[Testbed], None]


def _make(source: str, maker: Callable[[], Any]) -> Callable[[Testbed], None]:
    def apply(stage: Testbed) -> None:
        stage.sources.make[source] = maker

    return apply


def _offset(source: str, seconds: float) -> Callable[[Testbed], None]:
    def apply(stage: Testbed) -> None:
        stage.sources.offset_ns[source] = round(seconds * NS)

    return apply


def _zero(source: str) -> Callable[[Testbed], None]:
    def apply(stage: Testbed) -> None:
        stage.sources.fixed_ns[source] = 0

    return apply


def _frozen(source: str) -> Callable[[Testbed], None]:
    def apply(stage: Testbed) -> None:
        stage.sources.fixed_ns[source] = stage.now_ns() - NS

    return apply


def _silent(*sources: str) -> Callable[[Testbed], None]:
    return lambda stage: stage.sources.silent.update(sources)


def changed_picture(**changes: Any) -> Callable[[], Image]:
    """Maker of pictures with other fields."""

    def make() -> Image:
        message = picture()
        for name, value in changes.items():
            setattr(message, name, value)
        return message

    return make


def half_jpeg() -> Any:
    """A JPEG that ends early."""
    message = jpeg()
    message.data = message.data[: len(message.data) // 3]
    return message


def _second_place(stage: Testbed) -> None:
    """Another publisher of joint states that is elsewhere."""
    stage.sources.second["joint_states"] = lambda: joint_state([value + 0.8 for value in START])


FAULTS = (
    Fault("stale stamps", "base_camera", "dropped.out_of_order", "older than the sample before it",
          _frozen("base_camera")),
    Fault("stale joint states", "joint_states", "refused.stale",
          "stamp older than `max_age_s` (`max_camera_age_s`, `max_joint_age_s`) on the node's "
          "clock",
          _frozen("joint_states")),
    Fault("stamps ahead", "base_camera", "refused.future",
          "stamp more than `future_tolerance_s` ahead: clocks are not synchronized",
          _offset("base_camera", 1.0)),
    Fault("skew", "joint_states", "refused.skew",
          "more than `max_skew_s` behind the newest source", _offset("joint_states", -0.38)),
    Fault("dead camera", "base_camera", "refused.dead",
          "no message at all for `dead_source_timeout_s` of real time", _silent("base_camera")),
    Fault("stamp 0", "joint_states", "dropped.zero_stamp",
          "header stamp 0. Refused by default, since its age is unknown", _zero("joint_states")),
    Fault("unknown encoding", "base_camera", "dropped.encoding",
          "Encodings whose meaning is ambiguous are refused, such as `8UC3` (channel order)",
          _make("base_camera", changed_picture(encoding="8UC3"))),
    Fault("wrong step", "base_camera", "dropped.step", "images that cannot be read",
          _make("base_camera", changed_picture(step=7))),
    Fault("short data", "base_camera", "dropped.short_data", "images that cannot be read",
          _make("base_camera", changed_picture(data=b"\x00" * 100))),
    Fault("no size", "base_camera", "dropped.size", "images that cannot be read",
          _make("base_camera", changed_picture(width=0, height=0, step=0, data=b""))),
    Fault("cut JPEG", "wrist_camera", "dropped.undecodable",
          "A JPEG with bytes missing inside its scan is `undecodable` instead of half gray",
          _make("wrist_camera", half_jpeg)),
    Fault("joint states with NaN", "joint_states", "dropped.joint_not_finite",
          "joint states that cannot be read",
          _make("joint_states", lambda: joint_state([float("nan")] * 7))),
    Fault("too few positions", "joint_states", "dropped.joint_count",
          "joint states that cannot be read",
          _make("joint_states", lambda: joint_state(START[:4]))),
    Fault("joint named twice", "joint_states", "dropped.joint_duplicate",
          "joint states that cannot be read",
          _make("joint_states", lambda: joint_state(START, [*JOINTS[:6], "joint1"]))),
    Fault("other joints only", "joint_states", "without_wanted_joint",
          "Messages without any wanted joint, or of velocities alone, are counted "
          "(`joint_states.without_wanted_joint`) and are no fault.",
          _make("joint_states", lambda: joint_state((1.0,), ("wheel",)))),
    Fault("two publishers", "joint_states", "refused.conflict",
          "two publishers of joint states disagree about the same joint",
          _second_place),
)  # fmt: skip
