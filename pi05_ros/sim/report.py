"""Plots and videos of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from pi05_ros.sim.world import CONTROL_DT

Entry = dict[str, object]


def plots(summary: Sequence[Entry], out: Path) -> list[Path]:
    """Draw what the settings vary: success and seams over delay, success over steps."""
    right = [entry for entry in summary if entry["task"] == entry["prompted"]]
    made = []
    if len({entry["delay_ms"] for entry in right}) > 1:
        made.append(_lines(right, "delay_ms", "success", "chunking", out / "success_delay.png"))
        made.append(_lines(right, "delay_ms", "seam_mean", "chunking", out / "seam_delay.png"))
    if len({entry["denoise_steps"] for entry in right}) > 1:
        path = out / "success_steps.png"
        made.append(_lines(right, "denoise_steps", "success", "precision", path))
    if len({entry["kv_reuse"] for entry in right}) > 1:
        made.append(
            _lines(right, "fresh_share", "success", "kv_reuse", out / "success_kv_reuse.png")
        )
    return made


def _lines(entries: Sequence[Entry], x: str, y: str, by: str, path: Path) -> Path:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for group in dict.fromkeys(str(entry[by]) for entry in entries):
        of_group = [entry for entry in entries if str(entry[by]) == group]
        places = sorted({round(_number(entry[x]), 3) for entry in of_group})
        means = [
            np.mean([_number(e[y]) for e in of_group if round(_number(e[x]), 3) == place])
            for place in places
        ]
        axes.plot(places, means, marker="o", label=f"{by} {group}")
    axes.set_xlabel(x)
    axes.set_ylabel(f"{y}, mean over tasks")
    if y == "success":
        axes.set_ylim(-0.02, 1.02)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
    return path


def latency_plot(
    to_command_ms: Sequence[float], stages_ms: Mapping[str, Sequence[float]], path: Path
) -> None:
    """Histogram of observation-to-command latency beside the medians of the policy's stages."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.hist(to_command_ms, bins=30)
    left.set_xlabel("observation stamp to command, ms")
    known = {k: float(np.nanmedian(v)) for k, v in stages_ms.items() if np.isfinite(v).any()}
    right.barh(list(known), list(known.values()))
    right.set_xlabel("median, ms")
    right.invert_yaxis()
    figure.savefig(path, dpi=120)


def _number(value: object) -> float:
    return float(str(value))


def write_gif(frames: Sequence[np.ndarray], path: Path) -> None:
    """Pictures uint8 ``[H, W, 3]``, at least one, as a looping GIF in real time."""
    pictures = [Image.fromarray(frame).quantize(64) for frame in frames]
    pictures[0].save(
        path,
        save_all=True,
        append_images=pictures[1:],
        duration=round(CONTROL_DT * 1e3),
        loop=0,
        optimize=False,
    )
