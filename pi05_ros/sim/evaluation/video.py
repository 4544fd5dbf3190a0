"""Videos of an evaluation, and the latency plot of sessions through ROS."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from pi05_ros.sim.arm.world import CONTROL_DT


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


def write_gif(frames: Sequence[np.ndarray], path: Path) -> None:
    """Images uint8 ``[H, W, 3]``, at least one, as a looping GIF in real time."""
    pictures = [Image.fromarray(frame).quantize(64) for frame in frames]
    pictures[0].save(
        path,
        save_all=True,
        append_images=pictures[1:],
        duration=round(CONTROL_DT * 1e3),
        loop=0,
        optimize=False,
    )
