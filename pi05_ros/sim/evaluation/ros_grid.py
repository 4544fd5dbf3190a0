"""Sessions through ROS over settings, rates and tasks: resumable, with a table.

`run_session` does one of them; here are the list of what to run, its results file and the table.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from pi05_ros.errors import InvalidValueError
from pi05_ros.policy.checkpoints.recipe import RANDOM_PREFIX
from pi05_ros.policy.remote.remote_options import is_remote
from pi05_ros.runtime.parameters import PolicyParameters
from pi05_ros.sim.evaluation import results_file
from pi05_ros.sim.evaluation.setting import Setting, chunk_mode
from pi05_ros.tables import markdown_table

RESULTS = "ros.jsonl"
DEFAULT_RATE_HZ = 4.0
TABLE = "ros.md"
LOCK_STEP_DEADLINE_S = 60.0
STAGES = ("vision", "prefill", "denoise")
VARIED = ("backend", "precision", "denoise_steps", "chunking", "kv_reuse")
"""What of a setting the nodes are started with; the rest is for episodes in one process."""


@dataclass(frozen=True)
class RosJob:
    """One session: the nodes are started once and do one episode per seed."""

    setting: Setting
    rate_hz: float
    task: str
    seeds: tuple[int, ...]
    real_time: bool = False
    isolation: str = "thread"

    @property
    def key(self) -> str:
        """Identity in the results file; the figures of the two kinds of time are not alike."""
        words = [asdict(self.setting), self.rate_hz, self.task, self.seeds]
        return json.dumps(words if self.real_time else [*words, "lock-step"])

    def policy_parameters(self, checkpoint: str) -> dict[str, Any]:
        """Parameters of the policy node.

        Raises:
            ValueError: an engine is named for a policy server, which has its own.

        """
        setting = self.setting
        common: dict[str, Any] = {
            "checkpoint": checkpoint,
            "robot": "sim_arm",
            "rate_hz": self.rate_hz,
            "denoise_steps": setting.denoise_steps,
            "chunk_mode": chunk_mode(setting),
            "kv_reuse": setting.kv_reuse,
        }
        if is_remote(checkpoint):
            if (setting.backend, setting.precision) != (Setting.backend, Setting.precision):
                raise InvalidValueError(
                    f"--backend, --precision and --engines are not for the policy server "
                    f"{checkpoint}, which has its own"
                )
            # Simulated time waits for a slow answer, real time does not.
            return common | ({} if self.real_time else {"remote_deadline_s": LOCK_STEP_DEADLINE_S})
        return common | {
            "threads": 1,
            "isolation": self.isolation,
            "device": "cpu" if setting.backend == "eager" else "auto",
            "backend": setting.backend,
            **{f"precision.{stage}": setting.precision for stage in STAGES},
        }

    @property
    def strategy(self) -> str:
        """Strategy of the executor node."""
        return "ensemble" if self.setting.chunking == "ensemble" else "rtc"

    @property
    def name(self) -> str:
        """Start of its files' names: the task, then what is not default."""
        words = [self.task] if self.setting == Setting() else [self.task, self.setting.label]
        if self.rate_hz != DEFAULT_RATE_HZ:
            words.append(f"{self.rate_hz:g}Hz")
        if self.real_time:
            words.append("real-time")
        return "ros-" + re.sub(r"[^\w.]+", "-", "-".join(words))


def ros_jobs(
    settings: Sequence[Setting],
    rates_hz: Sequence[float],
    tasks: Sequence[str],
    seeds: Sequence[int],
    real_time: bool = False,
    checkpoint: str = RANDOM_PREFIX,
) -> list[RosJob]:
    """All combinations for a checkpoint.

    Raises:
        ValueError: a setting varies something that nodes in real time do not have, the policy
            node does not accept a value, or the seeds are not consecutive, as the driver's are.

    """
    if list(seeds) != list(range(seeds[0], seeds[0] + len(seeds))):
        raise InvalidValueError(f"--seeds {seeds}: with --ros they must be consecutive")
    for setting in settings:
        for item in fields(setting):
            if item.name not in VARIED and getattr(setting, item.name) != item.default:
                option = item.name.replace("_", "-")
                raise InvalidValueError(
                    f"--{option} is not for --ros; accepted: --rate, --real-time, --steps, "
                    "--chunking, --kv-reuse, --backend, --precision"
                )
    todo = [
        RosJob(setting, rate, task, tuple(seeds), real_time)
        for setting in settings
        for rate in rates_hz
        for task in tasks
    ]
    for job in todo:
        PolicyParameters.from_values(job.policy_parameters(checkpoint))
    return todo


def run_grid(
    todo: Sequence[RosJob],
    out: Path,
    run: Callable[[RosJob], dict[str, Any]],
    say: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:
    """Run what is not in ``out``/ros.jsonl yet; a row per job, and the table in ``out``/ros.md.

    Args:
        todo: sessions, one after the other.
        out: directory of results.
        run: does one session and returns `Session.row`.
        say: hears about sessions that are there already.

    """
    out.mkdir(parents=True, exist_ok=True)
    known = results_file.read(out / RESULTS)
    rows = []
    for job in todo:
        if job.key in known:
            say(f"{job.name}: kept from {out / RESULTS}")
        else:
            known[job.key] = json.loads(json.dumps(run(job)))  # as it is read again
            results_file.append(out / RESULTS, job.key, known[job.key])
        rows.append(known[job.key])
        (out / TABLE).write_text(markdown(todo[: len(rows)], rows), "utf-8")
    return rows


def markdown(todo: Sequence[RosJob], rows: Sequence[dict[str, Any]]) -> str:
    """Table for people: times in ms, medians unless said otherwise."""
    parts = list(dict.fromkeys(part for row in rows for part in row["split_ms"]))
    head = [
        "setting",
        "Hz",
        "task",
        "success",
        "chunks/s",
        "to command p50 / p99",
        "real-time factor",
        *parts,
    ]
    table: list[Sequence[object]] = []
    for job, row in zip(todo, rows, strict=True):
        times = [value for value in row["to_command_ms"] if np.isfinite(value)]
        whole = "none"
        if times:
            whole = "{:.0f} / {:.0f}".format(*np.percentile(times, [50, 99]))
        cells = [
            job.setting.label,
            f"{job.rate_hz:g}",
            job.task,
            f"{sum(row['done'].values())} of {len(row['done'])}",
            f"{row['chunks'] / max(row['watched_s'], 1e-9):.1f}",
            whole,
            f"{row['watched_s'] / max(row['wall_s'], 1e-9):.2f}",
            *(_median(row["split_ms"].get(part, ())) for part in parts),
        ]
        table.append(cells)
    return markdown_table(head, table)


def _median(values: Sequence[float]) -> str:
    known = [value for value in values if np.isfinite(value)]
    return f"{np.median(known):.1f}" if known else "-"
