"""ROS message types without ROS: the rosbags type store with this package's messages in it."""

from __future__ import annotations

import os
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from rosbags.serde import SerdeError
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

NS = 1_000_000_000

IMAGE = "sensor_msgs/msg/Image"
COMPRESSED_IMAGE = "sensor_msgs/msg/CompressedImage"
JOINT_STATE = "sensor_msgs/msg/JointState"
BOOL = "std_msgs/msg/Bool"
STRING = "std_msgs/msg/String"
CLOCK = "rosgraph_msgs/msg/Clock"
DIAGNOSTICS = "diagnostic_msgs/msg/DiagnosticArray"
ACTION_CHUNK = "pi05_ros/msg/ActionChunk"
POLICY_STATUS = "pi05_ros/msg/PolicyStatus"
EXECUTOR_STATUS = "pi05_ros/msg/ExecutorStatus"
TASK_STATUS = "pi05_ros/msg/TaskStatus"
OWN_MESSAGES = (
    "InferenceTimings", "PoseGroup", "ActionChunk", "PolicyStatus", "ExecutorStatus", "TaskStatus",
    "RecorderStatus",
)  # fmt: skip


def message_dir() -> Path:
    """Folder with this package's .msg files: of the source tree, else of the installed package.

    Raises:
        FileNotFoundError: neither exists; names the places looked at.

    """
    prefixes = [Path(p) for p in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if p]
    places = [Path(__file__).resolve().parents[2] / "msg"]
    places += [prefix / "share" / "pi05_ros" / "msg" for prefix in [*prefixes, Path(sys.prefix)]]
    for place in places:
        if (place / "ActionChunk.msg").is_file():
            return place
    looked = ", ".join(str(place) for place in places)
    raise FileNotFoundError(f"ActionChunk.msg not found; looked in {looked}")


@lru_cache(maxsize=1)
def typestore() -> Typestore:
    """Jazzy's message types and those of this package."""
    store = get_typestore(Stores.ROS2_JAZZY)
    folder = message_dir()
    for name in OWN_MESSAGES:
        text = (folder / f"{name}.msg").read_text(encoding="utf-8")
        store.register(get_types_from_msg(text, f"pi05_ros/msg/{name}"))
    return store


def decode(raw: bytes, msgtype: str) -> Any:
    """Message object of CDR bytes; arrays are numpy arrays.

    An ActionChunk of release 0.1.0, which ends before `pose_groups`, has none of them.
    """
    if msgtype != ACTION_CHUNK:
        return typestore().deserialize_cdr(raw, msgtype)
    try:
        return typestore().deserialize_cdr(raw, msgtype)
    except (AssertionError, SerdeError):
        # What is missing is the length of a sequence, 0, at a multiple of four.
        padding = -len(raw) % 4
        return typestore().deserialize_cdr(bytes(raw) + bytes(padding + 4), msgtype)


def encode(message: Any) -> bytes:
    """CDR bytes of a message object."""
    return bytes(typestore().serialize_cdr(message, message.__msgtype__))


def to_ns(time: Any) -> int:
    """Nanoseconds of a builtin_interfaces/Time or Duration."""
    return int(time.sec) * NS + int(time.nanosec)


def time_message(ns: int) -> Any:
    """builtin_interfaces/Time of nanoseconds."""
    return typestore().types["builtin_interfaces/msg/Time"](sec=ns // NS, nanosec=ns % NS)


def duration_message(ns: int) -> Any:
    """builtin_interfaces/Duration of nanoseconds."""
    return typestore().types["builtin_interfaces/msg/Duration"](sec=ns // NS, nanosec=ns % NS)


def header(stamp_ns: int, frame_id: str = "") -> Any:
    """std_msgs/Header."""
    make = typestore().types["std_msgs/msg/Header"]
    return make(stamp=time_message(stamp_ns), frame_id=frame_id)


def image_message(pixels: np.ndarray, stamp_ns: int, frame_id: str = "") -> Any:
    """sensor_msgs/Image (rgb8, no row padding) of uint8 ``[H, W, 3]``."""
    height, width, _ = pixels.shape
    return typestore().types[IMAGE](
        header=header(stamp_ns, frame_id),
        height=height,
        width=width,
        encoding="rgb8",
        is_bigendian=0,
        step=3 * width,
        data=np.ascontiguousarray(pixels, dtype=np.uint8).reshape(-1),
    )


def compressed_image_message(data: bytes, stamp_ns: int, image_format: str) -> Any:
    """sensor_msgs/CompressedImage of encoded bytes."""
    return typestore().types[COMPRESSED_IMAGE](
        header=header(stamp_ns), format=image_format, data=np.frombuffer(data, np.uint8)
    )


def joint_state_message(names: list[str], positions: np.ndarray, stamp_ns: int) -> Any:
    """sensor_msgs/JointState with positions only."""
    return typestore().types[JOINT_STATE](
        header=header(stamp_ns),
        name=list(names),
        position=np.asarray(positions, dtype=np.float64),
        velocity=np.zeros(0),
        effort=np.zeros(0),
    )


def clock_message(ns: int) -> Any:
    """rosgraph_msgs/Clock."""
    return typestore().types[CLOCK](clock=time_message(ns))


def bool_message(value: bool) -> Any:
    """std_msgs/Bool."""
    return typestore().types[BOOL](data=value)


def string_message(text: str) -> Any:
    """std_msgs/String."""
    return typestore().types[STRING](data=text)
