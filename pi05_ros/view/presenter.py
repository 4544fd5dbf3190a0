"""Turns what a policy sees, says and does into what is shown; knows neither ROS nor the viewer.

An image is shown when a chunk answers it. While no chunks come, every image is shown, at most ten
per second and camera.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from pi05_ros.bags.cdr_messages import NS
from pi05_ros.bags.chunk_record import ChunkRecord
from pi05_ros.errors import Pi05Error
from pi05_ros.policy.interface import ActionMeaning, ActionUnit
from pi05_ros.runtime.text import printable
from pi05_ros.view.model_images import ModelImages
from pi05_ros.view.tool_path import Tool, ToolPose, tool_path

KEPT = 40
"""Images per camera that wait for the chunk that answers them."""
IMAGE_PERIOD_NS = NS // 10
CHUNK_PAUSE_NS = 2 * NS
"""Without a chunk for so long, images are shown as they come."""
MODES = ("", "waiting", "following", "holding", "stopped", "fault", "teleoperated")
"""Words of ExecutorStatus' mode."""


class Sink(Protocol):
    """Where it is shown."""

    def image(self, role: str, stamp_ns: int, pixels: np.ndarray) -> None:
        """Take an image as the model sees it, uint8 ``[S, S, 3]``."""

    def data(self, topic: str, stamp_ns: int, values: Mapping[str, Any]) -> None:
        """Take a record: chunk, joints, latency, executor, policy or notes."""

    def path(self, stamp_ns: int, frame: str, poses: Sequence[ToolPose]) -> None:
        """Take the path of the tool."""


class Presenter:
    """Feeds a sink.

    Args:
        sink: what shows it.
        images: of the robot.
        tool: whose path is shown, or None.
        why_no_tool: told to viewers where there is none.

    """

    def __init__(
        self, sink: Sink, images: ModelImages, tool: Tool | None, why_no_tool: str = ""
    ) -> None:
        self._sink, self._images, self._tool = sink, images, tool
        self._notes = {
            "tool_path": tool.source if tool else why_no_tool,
            "image_size": images.size,
            "slots": dict(images.slots),
        }
        self._waiting: dict[str, OrderedDict[int, Callable[[], np.ndarray]]] = {}
        self._shown_ns: dict[str, int] = {}
        self._measured: dict[str, float] = {}
        self._chunk_ns: int | None = None

    def image(self, role: str, stamp_ns: int, decode: Callable[[], np.ndarray]) -> None:
        """A camera's image came; it is decoded only if it is shown."""
        waiting = self._waiting.setdefault(role, OrderedDict())
        waiting[stamp_ns] = decode
        while len(waiting) > KEPT:
            waiting.popitem(last=False)
        quiet = self._chunk_ns is None or not 0 <= stamp_ns - self._chunk_ns < CHUNK_PAUSE_NS
        since = stamp_ns - self._shown_ns.get(role, -IMAGE_PERIOD_NS)
        if quiet and not 0 <= since < IMAGE_PERIOD_NS:
            self._show(role, stamp_ns)

    def joints(self, stamp_ns: int, names: Sequence[str], positions: Sequence[float]) -> None:
        """Joint states came."""
        self._measured.update(zip(names, map(float, positions), strict=False))
        columns = [
            {"name": printable(name), "value": _number(value)}
            for name, value in self._measured.items()
        ]
        self._sink.data("joints", stamp_ns, {"joints": columns})

    def chunk(self, chunk: ChunkRecord) -> None:
        """A chunk came."""
        now = chunk.received_ns
        self._chunk_ns = chunk.observation_ns
        for source, stamp_ns in chunk.inputs.items():
            if source.endswith("_camera"):
                self._show(source.removesuffix("_camera"), stamp_ns)
        step_s = chunk.step_ns / NS
        self._sink.data(
            "chunk",
            now,
            {
                "chunk_id": chunk.chunk_id,
                "policy_id": printable(chunk.policy_id),
                "prompt": printable(chunk.prompt),
                "random_weights": chunk.random_weights,
                "kv_age": chunk.kv_age,
                "horizon": len(chunk.data),
                "step_s": step_s,
                "steps_past": chunk.steps_past,
                "observation_ns": chunk.observation_ns,
                "times_s": [k * step_s for k in range(len(chunk.data))],
                "columns": [
                    {
                        "name": printable(name),
                        "meaning": _word(ActionMeaning, chunk.meaning[j]),
                        "unit": _word(ActionUnit, chunk.unit[j]),
                        "values": [_number(value) for value in chunk.data[:, j]],
                    }
                    for j, name in enumerate(chunk.names)
                ],
            },
        )
        ages = {name: (now - stamp) / 1e6 for name, stamp in chunk.inputs.items()}
        self._sink.data(
            "latency",
            now,
            {
                "age_ms": (now - chunk.observation_ns) / 1e6,
                "input_age_ms": {printable(name): age for name, age in ages.items()},
                **{name: _number(value) for name, value in chunk.timings.items()},
            },
        )
        if self._tool is not None:
            poses = tool_path(self._tool, chunk, self._measured)
            if poses:
                self._sink.path(now, self._tool.frame, poses)
        self._sink.data("notes", now, self._notes)

    def executor(self, stamp_ns: int, status: Any) -> None:
        """Status of the executor (pi05_ros/ExecutorStatus) came."""
        mode = int(status.mode)
        values = {
            "mode": MODES[mode] if 0 < mode < len(MODES) else str(mode),
            "reason": printable(status.reason),
            "reason_age_s": _number(status.reason_age_s),
            "chunk_id": int(status.chunk_id),
            "lag_s": _number(status.lag_s),
            "stopped": bool(status.stopped),
            "enabled": bool(status.enabled),
            "fault": printable(status.fault),
            "speed_scale": _number(status.speed_scale),
            "intervention": bool(status.intervention),
            "joints": [printable(name) for name in status.joints],
            "commanded": [_number(value) for value in status.commanded],
            "measured": [_number(value) for value in status.measured],
        }
        self._sink.data("executor", stamp_ns, values)

    def _show(self, role: str, stamp_ns: int) -> None:
        waiting = self._waiting.get(role)
        decode = None if waiting is None else waiting.get(stamp_ns)
        if decode is None or self._shown_ns.get(role) == stamp_ns:
            return
        try:
            pixels = self._images.show(role, decode())
        except Pi05Error as error:
            note = f"image of {role}: {error}"
            self._sink.data("notes", stamp_ns, {**self._notes, "problem": printable(note)})
            return
        self._shown_ns[role] = stamp_ns
        self._sink.image(role, stamp_ns, pixels)


def _number(value: Any) -> float | None:
    """A number for JSON, which has no NaN."""
    number = float(value)
    return number if math.isfinite(number) else None


def _word(kind: Any, value: int) -> str:
    try:
        return str(kind(value).name).lower()
    except ValueError:
        return str(value)


MakePresenter = Callable[[Sink], Presenter]
"""Makes the presenter of a robot for what shows it."""
