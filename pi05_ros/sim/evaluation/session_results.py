"""What a session of episodes through ROS nodes gave: successes, times, a film; and its files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pi05_ros.sim.evaluation import video

if TYPE_CHECKING:
    from pi05_ros.msg import ActionChunk

PARTS = ("input", "queue", "convert", "vision", "prefill", "denoise", "node", "output")
"""input: oldest sample's stamp until the newest sample is received (cameras are not in step);
convert: decoding and preprocessing; node: the rest of the policy node; output: chunk published
until the next command is received, so half a control period at the least on average."""


@dataclass
class RosSession:
    """What came out of the episodes.

    Attributes:
        real_time: whether the nodes ran in real time, else in lock-step on simulated time.
        done: seed -> whether the task was done in time.
        seconds: duration of the successful episodes on the clock of the nodes.
        to_command_ms: observation stamp -> first command after the chunk that answers it; in
            lock-step real time from the newest sample's receipt by the policy node, because
            simulated time waits for chunk and command.
        stages_ms: stage of the policy node -> its times, from the chunks' own timings.
        split_ms: parts of ``to_command_ms``, see `PARTS`; they add up to it.
        chunks: chunks received, over ``watched_s`` seconds on the clock of the nodes.
        wall_s: the same in real time.
        film: images of the base camera, all episodes one after the other.

    """

    real_time: bool = True
    done: dict[int, bool] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    to_command_ms: list[float] = field(default_factory=list)
    stages_ms: dict[str, list[float]] = field(default_factory=dict)
    split_ms: dict[str, list[float]] = field(default_factory=dict)
    chunks: int = 0
    watched_s: float = 0.0
    wall_s: float = 0.0
    film: list[np.ndarray] = field(default_factory=list, repr=False)

    def row(self) -> dict[str, Any]:
        """Everything but the film, for JSON."""
        names = [item.name for item in fields(self) if item.name != "film"]
        return {name: getattr(self, name) for name in names}

    @property
    def real_time_factor(self) -> float:
        """Time of the nodes per real time."""
        return self.watched_s / max(self.wall_s, 1e-9)

    @property
    def text(self) -> str:
        """Summary for people."""

        def spread(values: Sequence[float]) -> str:
            known = [v for v in values if np.isfinite(v)]
            if not known:
                return "none"
            p50, p99 = np.percentile(known, [50, 99])
            return f"p50 {p50:.1f} ms, p99 {p99:.1f} ms"

        start = "camera stamp" if self.real_time else "newest sample"
        lines = [
            f"success {sum(self.done.values())} of {len(self.done)}",
            f"chunks {self.chunks / max(self.watched_s, 1e-9):.1f} per second",
            f"real-time factor {self.real_time_factor:.2f}"
            + (" (real time asked)" if self.real_time else " (lock-step)"),
            f"{start} -> command: {spread(self.to_command_ms)}",
            *(f"  {name}: {spread(values)}" for name, values in self.stages_ms.items()),
        ]
        return "\n".join(lines)


def split(chunk: ActionChunk, input_ms: float, output_ms: float) -> dict[str, float]:
    """Where the time from observation to command went, ms by `PARTS`."""
    t = chunk.timings
    parts = {
        "input": input_ms,
        "queue": t.queue_ms,
        "convert": t.convert_ms + t.preprocess_ms,
        "vision": t.vision_ms,
        "prefill": t.prefill_ms,
        "denoise": t.denoise_ms,
    }
    known = [t.queue_ms, t.convert_ms, t.preprocess_ms, t.model_ms]
    parts["node"] = t.total_ms - sum(value for value in known if np.isfinite(value))
    parts["output"] = output_ms
    return {part: float(value) for part, value in parts.items()}


def write_session(session: RosSession, stem: Path) -> list[Path]:
    """Numbers, latency plot and video as ``stem``.json, .png and .gif; the files written.

    Raises:
        ModuleNotFoundError: matplotlib is missing; the numbers are written by then.

    """
    numbers, plot, film = (Path(f"{stem}.{ending}") for ending in ("json", "png", "gif"))
    numbers.write_text(json.dumps(session.row(), indent=1) + "\n", "utf-8")
    written = [numbers]
    if session.film:
        video.write_gif(session.film, film)
        written.append(film)
    video.latency_plot(session.to_command_ms, session.stages_ms, plot)
    return [*written, plot]
