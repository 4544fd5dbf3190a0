"""The image of a replay: latency histogram, where the time went, chunks over time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pi05_ros.bags.chunk_record import ChunkRecord
from pi05_ros.replay.faults.windows import Windows
from pi05_ros.replay.summary import ReplaySummary, latencies_ms

STAGES = (
    ("queue_ms", "waiting"),
    ("convert_ms", "convert"),
    ("preprocess_ms", "preprocess"),
    ("vision_ms", "vision"),
    ("prefill_ms", "prefill"),
    ("denoise_ms", "denoise"),
    ("postprocess_ms", "postprocess"),
)
MAX_JOINTS = 7


def require_matplotlib() -> None:
    """Import what draws now rather than after a replay; raises ModuleNotFoundError."""
    import matplotlib  # noqa: F401


def plot_replay(
    path: Path,
    chunks: Sequence[ChunkRecord],
    summary: ReplaySummary,
    joint_states: tuple[np.ndarray, np.ndarray] | None = None,
    title: str = "",
) -> None:
    """Write a PNG.

    Args:
        path: where.
        chunks: chunks in the order of arrival, at least one.
        summary: figures for the captions.
        joint_states: measured times in ns ``[n]`` and positions ``[n, len(names)]`` in the
            order of the chunk's names, drawn behind the chunks.
        title: first line.

    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    names = chunks[0].names[:MAX_JOINTS]
    live = summary.mode == "live"
    figure = plt.figure(figsize=(13, 2.9 * live + 1.15 * len(names) + 1.0), layout="constrained")
    printable = title.encode("utf-8", "backslashreplace").decode()  # it holds file names
    figure.suptitle(printable, fontsize=12, x=0.01, ha="left", parse_math=False)
    top, bottom = (
        figure.subfigures(2, 1, height_ratios=(2.9, 1.15 * len(names))) if live else (None, figure)
    )
    if top is not None:
        left, right = top.subplots(1, 2)
        _latency(left, chunks, summary)
        _stages(right, chunks)
    axes = np.atleast_1d(bottom.subplots(len(names), 1, sharex=True))
    _trajectories(axes, chunks, joint_states)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _latency(axis, chunks: Sequence[ChunkRecord], summary: ReplaySummary) -> None:  # type: ignore[no-untyped-def]
    """Histogram of the end-to-end latency with its percentiles."""
    values = latencies_ms(chunks)
    upper = max(float(np.percentile(values, 99.5)) * 1.25, 1.0)
    axis.hist(np.clip(values, 0, upper), bins=30, range=(0, upper), color="#4878a8")
    spread = summary.latency_ms
    marks = (("p50", spread.p50, "-"), ("p95", spread.p95, "--"), ("p99", spread.p99, ":"))
    for label, value, style in marks:
        axis.axvline(value, color="black", lw=1, ls=style, label=f"{label} {value:.1f} ms")
    axis.set(xlabel="oldest sample's stamp to chunk received [ms]", ylabel="chunks")
    axis.set_title(f"End-to-end latency of {len(values)} chunks", loc="left", fontsize=10)
    axis.legend(frameon=False, fontsize=8)


def _stages(axis, chunks: Sequence[ChunkRecord]) -> None:  # type: ignore[no-untyped-def]
    """Stacked areas: stages of each chunk as the node measured them."""
    first = chunks[0].received_ns
    times = np.asarray([(chunk.received_ns - first) / 1e9 for chunk in chunks])
    rows = [[chunk.timings[name] for chunk in chunks] for name, _ in STAGES]
    if np.isnan(rows[3]).all():  # a backend that runs the stages as one
        rows[3] = [chunk.timings["model_ms"] for chunk in chunks]
    labels = [label for _, label in STAGES]
    colors = ("#c7c7c7", "#e3d5a5", "#8fbcd4", "#4878a8", "#2f4b7c", "#d98b4a", "#9a9a4a")
    axis.stackplot(times, np.nan_to_num(np.asarray(rows)), labels=labels, colors=colors)
    upper = 1.45 * float(np.max(np.nansum(rows, axis=0)))  # room for the legend
    axis.set(xlabel="time [s]", ylabel="[ms]", xlim=(0, max(times[-1], 1e-3)), ylim=(0, upper))
    axis.set_title("Where the node's time went", loc="left", fontsize=10)
    handles, texts = axis.get_legend_handles_labels()
    axis.legend(handles[::-1], texts[::-1], fontsize=8, loc="upper right", ncols=4, frameon=False)


def _trajectories(  # type: ignore[no-untyped-def]
    axes, chunks: Sequence[ChunkRecord], joint_states: tuple[np.ndarray, np.ndarray] | None
) -> None:
    """Per action: every chunk as a line from its observation stamp on."""
    from matplotlib import colormaps

    start = chunks[0].stamp_ns
    colors = colormaps["viridis"](np.linspace(0.05, 0.9, len(chunks)))
    for column, axis in enumerate(axes):
        for chunk, color in zip(chunks, colors, strict=True):
            steps = np.arange(len(chunk.data)) * chunk.step_ns
            times = (chunk.stamp_ns - start + steps) / 1e9
            axis.plot(times, chunk.data[:, column], color=color, lw=0.8, alpha=0.8)
        if joint_states is not None:
            times = (joint_states[0] - start) / 1e9
            axis.plot(times, joint_states[1][:, column], color="black", lw=1.2, label="measured")
        axis.set_ylabel(
            chunks[0].names[column],
            rotation=0, ha="right", va="center", fontsize=9, parse_math=False,
        )  # fmt: skip
        axis.tick_params(labelsize=8)
        axis.margins(x=0.01)
        axis.grid(alpha=0.25)
    axes[0].set_title(
        "Chunks: one line each, from its observation stamp on (early dark, late light)",
        loc="left",
        fontsize=10,
    )
    if joint_states is not None:
        axes[0].legend(frameon=False, fontsize=8, loc="upper right")
    axes[-1].set_xlabel("bag time since the first observation [s]")


def plot_agreement(path: Path, windows: Windows, errors: np.ndarray, title: str) -> None:
    """Write a PNG: per column the chunks over what the demonstrator did.

    Args:
        path: where.
        windows: of `pi05_ros.replay.convention_faults`.
        errors: relative error per column ``[A]``.
        title: first line.

    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    count = len(windows.names)
    figure, axes = plt.subplots(
        count, 1, figsize=(12, 1.6 * count + 1), layout="constrained", squeeze=False
    )
    printable = title.encode("utf-8", "backslashreplace").decode()
    figure.suptitle(printable, fontsize=12, x=0.01, ha="left", parse_math=False)
    done = windows.slice()
    for column, axis in enumerate(axes[:, 0]):
        for index, chunk in enumerate(windows.chunks):
            steps = np.arange(windows.horizon) + index * (windows.horizon + 2)
            label = {"label": "demonstrator"} if index == 0 else {}
            axis.plot(steps, done[index, :, column], color="0.6", linewidth=3, **label)
            label = {"label": "policy"} if index == 0 else {}
            axis.plot(steps, chunk[:, column], color="C0", linewidth=1, **label)
        name = windows.names[column]
        axis.set_ylabel(f"{name}\n{errors[column]:.2g}", parse_math=False)
        axis.set_xticks([])
    axes[0, 0].legend(loc="upper right", ncols=2, fontsize=8)
    axes[-1, 0].set_xlabel(f"windows of {windows.horizon * windows.step_s:.2g} s, side by side")
    figure.savefig(path, dpi=110)
    plt.close(figure)
