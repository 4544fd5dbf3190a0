"""Small bags for tests, and bags made from them by editing."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image as Pillow

from pi05_ros.bags.bag import Bag, BagMessage, BagWriter
from pi05_ros.bags.cdr_messages import (
    COMPRESSED_IMAGE,
    NS,
    encode,
    header,
    image_message,
    joint_state_message,
    string_message,
    typestore,
)

START_NS = 50 * NS
NAMES = ("joint1", "joint2", "joint3", "joint4", "joint5", "joint6", "gripper")
CAMERA_HZ, JOINT_HZ = 30, 100

Edit = Callable[[BagMessage], Iterator[BagMessage]]


def pixels(index: int, size: tuple[int, int] = (24, 32)) -> np.ndarray:
    """Image that differs from frame to frame."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    red = (rows * 7 + index * 5) % 256
    return np.stack([red, columns * 5 % 256, (rows + columns + index) % 256], -1).astype(np.uint8)


def positions(seconds: float, names: tuple[str, ...] = NAMES) -> np.ndarray:
    """Joint values that depend on name and time."""
    return np.array([0.1 * NAMES.index(name) + 0.2 * np.sin(seconds) for name in names])


def write_bag(
    path: Path,
    seconds: float = 1.0,
    *,
    storage: str = "mcap",
    prefix: str = "",
    compressed: bool = False,
    cameras: tuple[str, ...] = ("base_camera", "wrist_camera"),
    prompt: str | None = "push the block",
) -> Path:
    """Two cameras, joint states and a prompt, log time = stamp."""
    events: list[tuple[int, str, object]] = []
    if prompt is not None:
        events.append((START_NS, "/prompt", string_message(prompt)))
    for index in range(round(seconds * JOINT_HZ)):
        stamp = START_NS + index * NS // JOINT_HZ
        message = joint_state_message(list(NAMES), positions(index / JOINT_HZ), stamp)
        events.append((stamp, f"{prefix}/joint_states", message))
    for offset, camera in enumerate(cameras):
        for index in range(round(seconds * CAMERA_HZ)):
            stamp = START_NS + index * NS // CAMERA_HZ + offset * 1_000_000
            topic = f"{prefix}/{camera}/image_raw"
            if compressed:
                events.append((stamp, f"{topic}/compressed", jpeg(pixels(index + offset), stamp)))
            else:
                events.append((stamp, topic, image_message(pixels(index + offset), stamp)))
    with BagWriter(path, storage=storage) as bag:
        for stamp, topic, message in sorted(events, key=lambda event: (event[0], event[1])):
            bag.write(topic, stamp, message)
    return path


def jpeg(picture: np.ndarray, stamp: int) -> object:
    """sensor_msgs/CompressedImage."""
    buffer = io.BytesIO()
    Pillow.fromarray(picture).save(buffer, "JPEG", quality=90)
    data = np.frombuffer(buffer.getvalue(), np.uint8)
    return typestore().types[COMPRESSED_IMAGE](header=header(stamp), format="jpeg", data=data)


def edit_bag(source: Path, target: Path, edit: Edit) -> Path:
    """Copy a bag message by message through `edit`, in the order of the new log times."""
    with Bag(source) as bag:
        messages = [new for message in bag.messages() for new in edit(message)]
    with BagWriter(target) as writer:
        for message in sorted(messages, key=lambda item: item.log_ns):
            writer.write_raw(message.topic, message.msgtype, message.log_ns, message.raw)
    return target


def drop(topic: str, first_ns: int, last_ns: int) -> Edit:
    """Leave a topic out for a while."""

    def edit(message: BagMessage) -> Iterator[BagMessage]:
        if not (message.topic == topic and first_ns <= message.log_ns < last_ns):
            yield message

    return edit


def delay(topic: str, by_ns: int) -> Edit:
    """Let a topic arrive later than it was stamped."""

    def edit(message: BagMessage) -> Iterator[BagMessage]:
        late = message.log_ns + (by_ns if message.topic == topic else 0)
        yield message._replace(log_ns=late)

    return edit


def swap_joints(message: BagMessage) -> Iterator[BagMessage]:
    """Turn the order of names and positions around."""
    if message.topic == "/joint_states":
        state = message.decode()
        state.name = list(reversed(state.name))
        state.position = state.position[::-1].copy()
        message = message._replace(raw=encode(state))
    yield message


def split_joints(gripper_lag_ns: int = 0, every: int = 1) -> Edit:
    """Wheels, arm and gripper in messages of their own; every n-th of the gripper's."""
    count = 0

    def edit(message: BagMessage) -> Iterator[BagMessage]:
        nonlocal count
        if message.topic != "/joint_states":
            yield message
            return
        state = message.decode()
        stamp = message.log_ns
        parts = [(["left_wheel", "right_wheel"], np.zeros(2), stamp)]
        parts.append((state.name[:6], state.position[:6], stamp))
        if count % every == 0:
            parts.append((state.name[6:], state.position[6:], stamp - gripper_lag_ns))
        for names, values, taken in parts:
            yield message._replace(raw=encode(joint_state_message(names, values, taken)))
        count += 1

    return edit


def late_prompt(at_ns: int) -> Edit:
    """Move the prompt to a later time."""
    kept: list[BagMessage] = []

    def edit(message: BagMessage) -> Iterator[BagMessage]:
        if message.topic == "/prompt":
            kept.append(message._replace(log_ns=at_ns))
            return
        if kept and message.log_ns >= at_ns:
            yield kept.pop()
        yield message

    return edit


def nan_joints(first_ns: int, last_ns: int) -> Edit:
    """Put NaN into one joint for a while."""

    def edit(message: BagMessage) -> Iterator[BagMessage]:
        if message.topic == "/joint_states" and first_ns <= message.log_ns < last_ns:
            state = message.decode()
            state.position = state.position.copy()
            state.position[2] = np.nan
            message = message._replace(raw=encode(state))
        yield message

    return edit
