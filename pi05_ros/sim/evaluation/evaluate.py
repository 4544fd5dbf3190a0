"""Many episodes over settings, tasks and seeds: processes, a results file that can be resumed."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from pi05_ros.backends.eager import EagerEngine
from pi05_ros.errors import InvalidValueError
from pi05_ros.execution.limits import JointLimits, limits_from_yaml
from pi05_ros.policy import Observation, Policy
from pi05_ros.resources import config_dir
from pi05_ros.sim.arm.pose_actions import PoseActions
from pi05_ros.sim.arm.render import RENDER_SIZE
from pi05_ros.sim.arm.tasks import TASKS
from pi05_ros.sim.arm.world import CAMERAS, World
from pi05_ros.sim.cluster_workers import as_done_on_cluster
from pi05_ros.sim.evaluation import results_file
from pi05_ros.sim.evaluation.episode import Result, chunk_generator, run_episode
from pi05_ros.sim.evaluation.imitated_precision import IMITATED, fake_quantize
from pi05_ros.sim.evaluation.setting import Setting
from pi05_ros.sim.workers import as_done

RESULTS = "results.jsonl"
LIMITS_FILE = "sim_arm_limits.yaml"
PRIMING_SEED = 10**6
PRIMING_SCENES = 3


@dataclass(frozen=True)
class EpisodeJob:
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
class Cluster:
    """A Ray cluster that runs episodes, see `as_done_on_cluster`."""

    address: str
    workers: int | None = None
    gpus: float = 0.0
    pictures: str | None = None


def arm_limits() -> JointLimits:
    """Limits of the simulated arm as shipped in config/."""
    return limits_from_yaml(config_dir() / LIMITS_FILE)


def jobs(
    settings: Sequence[Setting],
    tasks: Sequence[str],
    seeds: Sequence[int],
    wrong_prompts: bool = False,
) -> list[EpisodeJob]:
    """All combinations, setting by setting.

    With wrong prompts every task is given the words of every task of the arm, asked for or not.
    """
    return [
        EpisodeJob(setting, task, prompted, seed)
        for setting in settings
        for task in tasks
        for prompted in (TASKS if wrong_prompts else (task,))
        for seed in seeds
    ]


class EpisodeRunner(Protocol):
    """Runs episodes of one benchmark in this process."""

    def run(self, job: EpisodeJob, frames: list[np.ndarray] | None = None) -> Result:
        """One episode; ``frames`` gets an image per control step if given."""

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


class ArmRunner:
    """Runs episodes of the simulated arm in this process."""

    def __init__(self, checkpoint: str, renderer: str | None = None, device: str = "auto") -> None:
        self._threads = torch.get_num_threads()
        # Sums over another number of threads round differently, and the small policy is slower.
        torch.set_num_threads(1)
        self.world = World(renderer)
        self.limits = arm_limits()
        self.policies = PolicyOfSetting(checkpoint, "sim_arm", device)
        self._primed: Policy | None = None
        self._poses: PoseActions | None = None

    def run(self, job: EpisodeJob, frames: list[np.ndarray] | None = None) -> Result:
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
            self._poses_of(setting),
        )

    def _poses_of(self, setting: Setting) -> PoseActions | None:
        """Converter of actions; KinematicsError says what is missing for it."""
        if setting.actions == "joints":
            return None
        if self._poses is None:
            self._poses = PoseActions(self.limits)
        return self._poses

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


def _work(job: EpisodeJob) -> tuple[EpisodeJob, Result]:
    """Run an episode in a worker; what goes wrong in making the runner is raised like the rest."""
    global _runner
    if _runner is None:
        assert _make is not None
        _runner = _make()
    return job, _runner.run(job)


def evaluate(
    todo: Iterable[EpisodeJob],
    out: Path,
    checkpoint: str,
    workers: int = 1,
    renderer: str | None = None,
    device: str = "auto",
    progress: Callable[[int, int], None] = lambda done, total: None,
    make: MakeRunner = ArmRunner,
    cluster: Cluster | None = None,
) -> list[dict[str, object]]:
    """Run what is not in ``out``/results.jsonl yet; returns all asked rows.

    Every finished episode is appended at once, so a run that was cut off goes on from there.
    ``make`` chooses the benchmark. With ``cluster`` the workers are on its machines, where the
    checkpoint must be as well.
    """
    out.mkdir(parents=True, exist_ok=True)
    wanted = {job.key: job for job in todo}
    rows = {key: row for key, row in results_file.read(out / RESULTS).items() if key in wanted}
    missing = [job for key, job in wanted.items() if key not in rows]
    progress(len(rows), len(wanted))
    for job, result in _results(missing, checkpoint, workers, renderer, device, make, cluster):
        rows[job.key] = {**asdict(job.setting), **result.row()}
        results_file.append(out / RESULTS, job.key, rows[job.key])
        progress(len(rows), len(wanted))
    return [rows[key] for key in wanted]


def _results(
    missing: Sequence[EpisodeJob],
    checkpoint: str,
    workers: int,
    renderer: str | None,
    device: str,
    make: MakeRunner,
    cluster: Cluster | None,
) -> Iterator[tuple[EpisodeJob, Result]]:
    if not missing:
        return
    if cluster is not None:
        yield from as_done_on_cluster(
            partial(make, checkpoint, renderer, device), missing, cluster.address,
            cluster.workers, cluster.gpus, cluster.pictures,
        )  # fmt: skip
        return
    if workers == 1:
        with contextlib.closing(make(checkpoint, renderer, device)) as runner:
            for job in missing:
                yield job, runner.run(job)
        return
    setup = partial(make, checkpoint, renderer, device)
    yield from as_done(_work, missing, workers, _start, (setup,))
