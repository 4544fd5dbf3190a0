"""Many episodes over settings, tasks and seeds: processes, a results file that can be resumed."""

from __future__ import annotations

import contextlib
import csv
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from pi05_ros.backends.eager import EagerEngine
from pi05_ros.errors import InvalidValueError
from pi05_ros.execution.limits import JointLimits, limits_from_yaml
from pi05_ros.policy import Observation, Policy
from pi05_ros.resources import config_dir
from pi05_ros.sim.arm.tasks import TASKS
from pi05_ros.sim.arm.world import CAMERAS, World
from pi05_ros.sim.evaluation import results_file
from pi05_ros.sim.evaluation.episode import Result, Setting, chunk_generator, run_episode
from pi05_ros.sim.evaluation.fake_quant import IMITATED, fake_quantize
from pi05_ros.sim.evaluation.workers import as_done
from pi05_ros.sim.training.demonstrations import RENDER_SIZE
from pi05_ros.tables import markdown_table

RESULTS = "results.jsonl"
LIMITS_FILE = "sim_arm_limits.yaml"
PRIMING_SEED = 10**6
PRIMING_SCENES = 3
Z95 = 1.959964


@dataclass(frozen=True)
class Job:
    """One episode to run; ``prompted`` differs from ``task`` in wrong-prompt runs."""

    setting: Setting
    task: str
    prompted: str
    seed: int

    @property
    def key(self) -> str:
        """Identity in the results file."""
        return json.dumps([asdict(self.setting), self.task, self.prompted, self.seed])


@dataclass(frozen=True)
class Rate:
    """Successes of one group of episodes with Wilson's 95 % interval."""

    successes: int
    episodes: int

    @property
    def rate(self) -> float:
        """Share of successes, NaN without episodes."""
        return self.successes / self.episodes if self.episodes else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson score interval at 95 %."""
        n = self.episodes
        if not n:
            return math.nan, math.nan
        p, z2 = self.rate, Z95 * Z95
        center = (p + z2 / (2 * n)) / (1 + z2 / n)
        half = Z95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
        return max(0.0, center - half), min(1.0, center + half)


def arm_limits() -> JointLimits:
    """Limits of the simulated arm as shipped in config/."""
    return limits_from_yaml(config_dir() / LIMITS_FILE)


def jobs(
    settings: Sequence[Setting],
    tasks: Sequence[str],
    seeds: Sequence[int],
    wrong_prompts: bool = False,
) -> list[Job]:
    """All combinations, setting by setting.

    With wrong prompts every task is given the words of every task of the arm, asked for or not.
    """
    return [
        Job(setting, task, prompted, seed)
        for setting in settings
        for task in tasks
        for prompted in (TASKS if wrong_prompts else (task,))
        for seed in seeds
    ]


class EpisodeRunner(Protocol):
    """Runs episodes of one benchmark in this process."""

    def run(self, job: Job, frames: list[np.ndarray] | None = None) -> Result:
        """One episode; ``frames`` gets a picture per control step if given."""

    def close(self) -> None:
        """Free the GL context."""


MakeRunner = Callable[[str, str | None, str], EpisodeRunner]
"""checkpoint, renderer, device -> runner; can be pickled, so that processes make their own."""


class PolicyOfSetting:
    """Loads a checkpoint for the engine that a setting asks for, and keeps the last one."""

    def __init__(
        self, checkpoint: str, robot: str, device: str, tokenizer: str | None = None
    ) -> None:
        self.checkpoint = checkpoint
        self.robot = robot
        self.device = device
        self.tokenizer = tokenizer
        self._policy: Policy | None = None
        self._loaded: tuple[str, str, int] | None = None

    def get(self, setting: Setting) -> Policy:
        """The policy for a setting.

        Raises:
            PolicyError, CheckpointError, BackendError, ValueError: see `Policy.load`; or a
                precision cannot be imitated on the setting's backend.

        """
        wanted = (setting.backend, setting.precision, setting.denoise_steps)
        if self._policy is not None and self._loaded == wanted:
            return self._policy
        if self._policy is not None:
            self._policy.close()
            self._policy = None
        imitated = setting.precision.removeprefix(IMITATED)
        fake = imitated != setting.precision
        policy = Policy.load(
            self.checkpoint,
            robot=self.robot,
            tokenizer=self.tokenizer,
            backend=setting.backend,
            precision="fp32" if fake else setting.precision,
            denoise_steps=setting.denoise_steps,
            device=self.device,
        )
        if fake:
            if not isinstance(policy.engine, EagerEngine):
                raise InvalidValueError(f"precision {setting.precision} needs the eager backend")
            fake_quantize(policy.engine.model, imitated)
        self._policy, self._loaded = policy, wanted
        return policy


class Runner:
    """Runs episodes of the simulated arm in this process."""

    def __init__(self, checkpoint: str, renderer: str | None = None, device: str = "auto") -> None:
        self._threads = torch.get_num_threads()
        # Sums over another number of threads round differently, and the small policy is slower.
        torch.set_num_threads(1)
        self.world = World(renderer)
        self.limits = arm_limits()
        self.policies = PolicyOfSetting(checkpoint, "sim_arm", device)
        self._primed: Policy | None = None

    def run(self, job: Job, frames: list[np.ndarray] | None = None) -> Result:
        """One episode."""
        setting = job.setting
        policy = self.policies.get(setting)
        if policy is not self._primed:
            self._prime(policy)
        maker = chunk_generator(policy, setting)
        return run_episode(
            self.world,
            maker,
            self.limits,
            setting,
            job.task,
            job.seed,
            job.prompted,
            frames,
        )

    def _prime(self, policy: Policy) -> None:
        """Answer the same few scenes first in every process.

        An engine that takes its FP8 scales from the first observations (backend cuda without a
        calibration) then has the same ones whichever episodes come after.
        """
        for index in range(PRIMING_SCENES):
            self.world.reset(PRIMING_SEED + index)
            images = {c: self.world.render(c, RENDER_SIZE, RENDER_SIZE) for c in CAMERAS}
            prompt = list(TASKS.values())[index % len(TASKS)].prompt
            policy.infer(Observation(images, self.world.joint_positions, prompt), seed=index)
        self._primed = policy

    def close(self) -> None:
        """Free the GL context, and give torch its threads back."""
        self.world.close()
        torch.set_num_threads(self._threads)


_make: Callable[[], EpisodeRunner] | None = None
_runner: EpisodeRunner | None = None


def _start(make: Callable[[], EpisodeRunner]) -> None:
    global _make
    torch.set_num_threads(1)
    _make = make


def _work(job: Job) -> tuple[Job, Result]:
    """Run an episode in a worker; what goes wrong in making the runner is raised like the rest."""
    global _runner
    if _runner is None:
        assert _make is not None
        _runner = _make()
    return job, _runner.run(job)


def evaluate(
    todo: Iterable[Job],
    out: Path,
    checkpoint: str,
    workers: int = 1,
    renderer: str | None = None,
    device: str = "auto",
    progress: Callable[[int, int], None] = lambda done, total: None,
    make: MakeRunner = Runner,
) -> list[dict[str, object]]:
    """Run what is not in ``out``/results.jsonl yet; returns all asked rows.

    Every finished episode is appended at once, so a run that was cut off goes on from there.
    ``make`` chooses the benchmark.
    """
    out.mkdir(parents=True, exist_ok=True)
    wanted = {job.key: job for job in todo}
    rows = {key: row for key, row in results_file.read(out / RESULTS).items() if key in wanted}
    missing = [job for key, job in wanted.items() if key not in rows]
    progress(len(rows), len(wanted))
    for job, result in _results(missing, checkpoint, workers, renderer, device, make):
        rows[job.key] = {**asdict(job.setting), **result.row()}
        results_file.append(out / RESULTS, job.key, rows[job.key])
        progress(len(rows), len(wanted))
    return [rows[key] for key in wanted]


def _results(
    missing: Sequence[Job],
    checkpoint: str,
    workers: int,
    renderer: str | None,
    device: str,
    make: MakeRunner,
) -> Iterator[tuple[Job, Result]]:
    if not missing:
        return
    if workers == 1:
        with contextlib.closing(make(checkpoint, renderer, device)) as runner:
            for job in missing:
                yield job, runner.run(job)
        return
    setup = partial(make, checkpoint, renderer, device)
    yield from as_done(_work, missing, workers, _start, (setup,))


def write_csv(rows: Sequence[dict[str, object]], path: Path) -> None:
    """All episodes, one per line."""
    with path.open("w", newline="", encoding="utf-8") as file:
        names = dict.fromkeys(name for row in rows for name in row)
        writer = csv.DictWriter(file, fieldnames=list(names))
        writer.writeheader()
        writer.writerows(rows)


def summarize(rows: Sequence[dict[str, object]]) -> list[dict[str, object]]:
    """One entry per setting, task and prompt, in order of appearance."""
    names = [item.name for item in fields(Setting)] + ["task", "prompted"]
    groups: dict[tuple[object, ...], list[dict[str, object]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    return [
        {**dict(zip(names, key, strict=True)), **_group(members)}
        for key, members in groups.items()
    ]


def _group(members: Sequence[dict[str, object]]) -> dict[str, object]:
    def mean(name: str) -> float:
        return sum(float(str(row.get(name, "nan"))) for row in members) / len(members)

    def largest(name: str) -> float:
        return max(float(str(row.get(name, "nan"))) for row in members)

    rate = Rate(sum(bool(row["success"]) for row in members), len(members))
    wrong = sum(
        any(name != row["prompted"] for name in str(row["done"]).split("+") if name)
        for row in members
    )
    low, high = rate.interval
    return {
        "episodes": rate.episodes,
        "success": rate.rate,
        "low95": low,
        "high95": high,
        "unasked_tasks_done": wrong,
        "steps_mean": mean("steps"),
        "fresh_share": mean("fresh") / max(mean("inferences"), 1e-9),
        "seam_mean": mean("seam_mean"),
        "seam_max": largest("seam_max"),
        "kick_mean": mean("kick_mean"),
        "boundary_step_mean": mean("boundary_step_mean"),
        "boundary_step_max": largest("boundary_step_max"),
        "inner_step_mean": mean("inner_step_mean"),
    }


def markdown(summary: Sequence[dict[str, object]], setting_type: type[Setting] = Setting) -> str:
    """Table for people, one line per entry of `summarize`."""
    head = (
        "setting",
        "task",
        "prompt",
        "episodes",
        "success",
        "95 %",
        "unasked",
        "steps",
        "fresh KV",
        f"seam mean / max, kick [{setting_type.UNIT}]",
    )
    table: list[Sequence[object]] = []
    for entry in summary:
        values: dict[str, Any] = {f.name: entry[f.name] for f in fields(setting_type)}
        setting = setting_type(**values)
        cells = [
            setting.label,
            entry["task"],
            "same" if entry["task"] == entry["prompted"] else entry["prompted"],
            entry["episodes"],
            f"{entry['success']:.3f}",
            f"{entry['low95']:.3f} to {entry['high95']:.3f}",
            entry["unasked_tasks_done"],
            f"{entry['steps_mean']:.1f}",
            f"{entry['fresh_share']:.2f}",
            f"{entry['seam_mean']:.4f} / {entry['seam_max']:.3f}, {entry['kick_mean']:.4f}",
        ]
        table.append(cells)
    return markdown_table(head, table)


def mcnemar(a: Sequence[bool], b: Sequence[bool]) -> float:
    """Exact two-sided p-value that two settings differ, from successes on the same seeds."""
    only_a = sum(x and not y for x, y in zip(a, b, strict=True))
    only_b = sum(y and not x for x, y in zip(a, b, strict=True))
    n = only_a + only_b
    if n == 0:
        return 1.0
    tail = sum(math.comb(n, k) for k in range(min(only_a, only_b) + 1)) / 2**n
    return min(1.0, 2 * tail)
