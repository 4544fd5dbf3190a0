"""`pi05 bench node --grid`: the policy node over camera settings and rates, beside its bare call.

The node is loaded once for each number of cameras and kind of images. Its process first times the
policy's call alone (the reference); then, for each camera setting, a publisher runs and the node
is taken through all rates.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from pi05_ros.bench.bench_requests import CameraLoad, NodeGridRequest
from pi05_ros.bench.node import machine
from pi05_ros.policy.robots.profile_yaml import load_profile
from pi05_ros.replay.live import NODE, START_S, skipped_ticks, write_parameters
from pi05_ros.ros.processes.children import Child, Children, ros_environment
from pi05_ros.runtime.parameters import SPECS, ParameterError, PolicyParameters
from pi05_ros.small_files import read_json

CONFIGURE_S = 600.0
CELL_SLACK_S = 180.0
"""For services and diagnostics around the seconds of a cell, on a busy machine."""
SETTLE_S = 2.0
"""The node takes over the publishers' reliability within a second."""
HEAD = (
    "cameras",
    "rate",
    "chunks",
    "newest image -> chunk, p50/p99 ms",
    "arrive + wait + convert + answer + leave, p50 ms",
    "inference p50/p99 ms",
    "direct p50 ms",
    "p50, p99 against direct p50",
    "CPU of the node",
    "skipped ticks",
)


@dataclass(frozen=True)
class GridCell:
    """One camera setting at one rate.

    Attributes:
        cameras: size and rate of the images.
        rate_hz: inferences per second that were asked for.
        chunks, asked: received, and rate times duration.
        newest_image_to_chunk_ms: newest image's stamp -> chunk received by another process.
        parts_ms: medians of what is between the two besides the inference, see `rate_sweep.PARTS`.
        inference_ms: the policy's call in the node.
        direct_p50_ms: the same call in the same process without load, at that rate.
        cpu_share: of one core, node process only.
        skipped: ticks without a chunk, by reason.

    """

    cameras: str
    rate_hz: float
    chunks: int
    asked: float
    newest_image_to_chunk_ms: dict[str, float]
    parts_ms: dict[str, float]
    inference_ms: dict[str, float]
    direct_p50_ms: float
    cpu_share: float
    skipped: dict[str, int]

    def against_direct(self, name: str) -> float:
        """That percentile of the inference over the direct call's median."""
        return self.inference_ms[name] / self.direct_p50_ms


@dataclass(frozen=True)
class StartUp:
    """Start of one node process.

    Attributes:
        name: its cameras.
        configured_s: process started -> configured, without the direct calls.
        parts: seconds of its parts, as its log says.

    """

    name: str
    configured_s: float
    parts: dict[str, float]

    def text(self) -> str:
        """One line."""
        parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in self.parts.items())
        return f"{self.name}: configured {self.configured_s:.1f} s after its start ({parts})"


@dataclass(frozen=True)
class GridFigures:
    """All cells, and what was measured: machine, engine, and the start of each node process."""

    machine: str
    engine: dict[str, Any]
    starts: tuple[StartUp, ...]
    cells: tuple[GridCell, ...]


def measure_grid(
    request: NodeGridRequest, say: Callable[[str], None] = lambda text: None
) -> GridFigures:
    """Run the grid.

    Raises:
        RosMissingError, ChildError, ParameterError: it cannot run; one clear text.

    """
    roles = load_profile(request.robot).camera_roles
    series: dict[tuple[int, bool], list[CameraLoad]] = {}
    for load in request.grid:
        cameras = request.cameras if load.cameras is None else load.cameras
        if not 1 <= cameras <= len(roles):
            raise ParameterError(
                f"--cameras is {cameras}; accepted: 1 to {len(roles)} for robot {request.robot}"
            )
        series.setdefault((cameras, load.jpeg), []).append(load)
    environment, _ = ros_environment()
    request.out.mkdir(parents=True, exist_ok=True)
    cells: list[GridCell] = []
    starts: list[StartUp] = []
    engine: dict[str, Any] = {}
    for (cameras, jpeg), loads in series.items():
        name = f"{cameras}_{'jpeg' if jpeg else 'raw'}"
        values = _parameters(request, roles[:cameras], jpeg=jpeg)
        PolicyParameters.from_values(values)
        with Children(environment, request.out / f"logs_{name}") as children:
            engine, start = _series(
                children, request, cameras, loads, values, lambda cell: cells.append(cell), say
            )
        starts.append(start)
    figures = GridFigures(machine(), engine, tuple(starts), tuple(cells))
    report = json.dumps(asdict(figures), indent=1) + "\n"
    (request.out / "grid.json").write_text(report, encoding="utf-8")
    return figures


def _series(
    children: Children,
    request: NodeGridRequest,
    cameras: int,
    loads: Sequence[CameraLoad],
    values: dict[str, Any],
    done: Callable[[GridCell], None],
    say: Callable[[str], None],
) -> tuple[dict[str, Any], StartUp]:
    """One node process under all loads that its cameras fit; who was measured, and its start."""
    write_parameters(request.out / "node_params.yaml", values)
    direct_out = request.out / "direct.json"
    direct_out.unlink(missing_ok=True)
    sizes = dict.fromkeys(f"{load.width}x{load.height}" for load in loads)
    node = children.start_module(
        "policy_node", "pi05_ros.ros.processes.timed_policy_node",
        "--direct-out", str(direct_out), "--sizes", ",".join(sizes),
        "--rates", ",".join(f"{rate:g}" for rate in request.rates),
        "--seconds", str(request.direct_seconds), "--pretend-ms", str(request.pretend_ms),
        "--ros-args", "--params-file", str(request.out / "node_params.yaml"),
    )  # fmt: skip
    began = time.monotonic()
    sweep = children.start_module(
        "sweep", "pi05_ros.ros.processes.rate_sweep", "--node", NODE,
        "--configure-timeout", str(CONFIGURE_S), talks=True,
    )  # fmt: skip
    children.wait_event(sweep, "configured", CONFIGURE_S + START_S)
    configured_s = time.monotonic() - began
    direct = read_json(direct_out)
    parts = phases_of(node.log.read_text(encoding="utf-8", errors="replace"))
    start = StartUp(
        f"{cameras} {'compressed' if loads[0].jpeg else 'raw'} cameras",
        configured_s - float(direct["seconds"]),
        parts,
    )
    say(start.text())
    for load in loads:
        for cell in _setting(children, node, sweep, request, load, cameras, direct["calls"]):
            done(cell)
            say(" | ".join(row_of(cell)))
    return direct["info"], start


def phases_of(log: str) -> dict[str, float]:
    """Seconds of each part of a start, from the log of a node."""
    found = re.findall(r"loading: (.+) took (\d+\.\d+) s", log)
    return {name: float(seconds) for name, seconds in found}


def _parameters(request: NodeGridRequest, roles: Sequence[str], *, jpeg: bool) -> dict[str, Any]:
    stages = ("vision", "prefill", "denoise")
    transport = "compressed" if jpeg else "raw"
    return {
        **{
            item.name: getattr(request, item.name)
            for item in fields(request)
            if item.name in SPECS
        },
        **{f"precision.{stage}": request.precision for stage in stages},
        "camera_roles": list(roles),
        **{f"camera_transport.{role}": transport for role in roles},
    }


def _setting(
    children: Children,
    node: Child,
    sweep: Child,
    request: NodeGridRequest,
    load: CameraLoad,
    cameras: int,
    direct: dict[str, dict[str, list[float]]],
) -> list[GridCell]:
    """All rates under one camera load."""
    publisher = children.start_module(
        f"publisher_{load}".replace("*", "_"), "pi05_ros.ros.processes.load_publisher", "--node=",
        f"--robot={request.robot}", f"--cameras={cameras}", f"--width={load.width}",
        f"--height={load.height}", f"--camera-hz={load.hz}", f"--joint-hz={request.joint_hz}",
        *(["--jpeg"] if load.jpeg else []), talks=True,
    )  # fmt: skip
    children.wait_event(publisher, "ready", START_S)
    publisher.send("go")
    time.sleep(SETTLE_S)
    cells = []
    for rate in request.rates:
        sweep.send(json.dumps({"rate_hz": rate, "seconds": request.seconds}))
        children.wait_event(sweep, "active", CELL_SLACK_S)
        cpu, began = node.cpu_seconds(), time.monotonic()
        children.wait_event(sweep, "inactive", request.seconds + CELL_SLACK_S)
        share = (node.cpu_seconds() - cpu) / (time.monotonic() - began)
        row = children.wait_event(sweep, "cell", CELL_SLACK_S)["row"]
        calls = direct[f"{load.width}x{load.height}"][f"{rate:g}"]
        cells.append(_cell(str(load), row, float(np.median(calls)), share))
    publisher.send("stop")
    children.wait_event(publisher, "done", START_S)
    children.stop(publisher)
    return cells


def _cell(cameras: str, row: dict[str, Any], direct_ms: float, cpu_share: float) -> GridCell:
    given = {item.name: row[item.name] for item in fields(GridCell) if item.name in row}
    return GridCell(
        **given,
        cameras=cameras,
        direct_p50_ms=direct_ms,
        cpu_share=cpu_share,
        skipped=skipped_ticks(row["counts"]),
    )


def row_of(cell: GridCell) -> tuple[str, ...]:
    """Cells of the table, in the order of `HEAD`."""
    newest, inference = cell.newest_image_to_chunk_ms, cell.inference_ms
    return (
        cell.cameras,
        f"{cell.rate_hz:g}",
        f"{cell.chunks}/{cell.asked:.0f}",
        f"{newest['p50']:.1f} / {newest['p99']:.1f}",
        " + ".join(f"{value:.1f}" for value in cell.parts_ms.values()),
        f"{inference['p50']:.1f} / {inference['p99']:.1f}",
        f"{cell.direct_p50_ms:.1f}",
        f"{cell.against_direct('p50'):.2f}, {cell.against_direct('p99'):.2f}",
        f"{cell.cpu_share:.0%}",
        ", ".join(f"{count} {reason}" for reason, count in cell.skipped.items()) or "none",
    )


def write_table(figures: GridFigures, path: Path) -> str:
    """Markdown table, written to ``path`` and returned."""
    from pi05_ros.tables import markdown_table

    engine = figures.engine
    text = (
        f"{figures.machine}; {engine['backend']} on {engine['device']}, "
        f"{'/'.join(engine['precision'])}\n\n"
    )
    text += "\n".join(start.text() for start in figures.starts) + "\n\n"
    text += markdown_table(HEAD, [row_of(cell) for cell in figures.cells])
    path.write_text(text, encoding="utf-8")
    return text
