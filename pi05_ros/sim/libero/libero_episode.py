"""One episode of LIBERO with everything that can be varied, and the runner for many of them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from pi05_ros.errors import InvalidValueError
from pi05_ros.policy.chunking.chunk_generator import ChunkGenerator
from pi05_ros.sim.evaluation.episode import Chunking, Result, chunk_generator
from pi05_ros.sim.evaluation.evaluate import EpisodeJob, PolicyOfSetting
from pi05_ros.sim.evaluation.setting import Setting
from pi05_ros.sim.evaluation.success_rates import summarize
from pi05_ros.sim.libero import benchmark


@dataclass(frozen=True)
class LiberoSetting(Setting):
    """What is varied; ``max_steps`` 0 is the suite's own limit, ``nudge`` does not exist here."""

    STEP_S: ClassVar[float] = 1 / benchmark.CONTROL_HZ
    MOST_STEPS: ClassVar[int] = 900
    """robosuite ends every episode after 1000 steps, settling included."""
    LEAST_STEPS: ClassVar[int] = 0
    UNIT: ClassVar[str] = "command"

    replan: int = benchmark.DEFAULT_REPLAN
    max_steps: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nudge:
            raise InvalidValueError("nudge is for the simulated arm, not for LIBERO")
        if self.actions != "joints":
            raise InvalidValueError("actions is for the simulated arm, not for LIBERO")


def run_episode(
    environment: Any,
    initial_state: np.ndarray,
    task: benchmark.LiberoTask,
    maker: ChunkGenerator,
    setting: Setting,
    trial: int,
    seed: int = benchmark.DEFAULT_SEED,
    frames: list[np.ndarray] | None = None,
) -> Result:
    """Run until the task is done or time is over.

    Args:
        environment: LIBERO's, of this task; reset here.
        initial_state: of this trial.
        task: its words are the prompt.
        maker: policy, chunk mode and KV rule of the setting.
        setting: what is varied.
        trial: number of the initial state; the flow noise follows from it.
        seed: ``seed`` + ``trial`` seeds what the initial state does not hold (the places of
            fixtures), so that every episode can be repeated alone. openpi seeds once per task:
            its first trial is the same, later ones are drawn differently.
        frames: gets a turned base-camera image per control step if given.

    Raises:
        benchmark.LiberoError: chunks are shorter than the steps between two observations.

    """
    horizon = maker.policy.info.horizon
    if max(setting.replan, setting.delay_steps) > horizon:
        raise benchmark.LiberoError(
            f"observations are {max(setting.replan, setting.delay_steps)} steps apart, but a "
            f"chunk has {horizon} steps; lower --replan or --delay-ms"
        )
    environment.seed(seed + trial)
    environment.reset()
    raw = environment.set_init_state(initial_state)
    for _ in range(benchmark.SETTLING_STEPS):
        raw = environment.step(list(benchmark.NO_OP))[0]
    chunks = Chunking(maker, setting, trial)
    rng = np.random.default_rng([trial, 2])
    gripper = benchmark.NO_OP[-1]
    done, step = False, 0
    limit = setting.max_steps or benchmark.SUITES[task.suite]
    while step < limit and not done:
        if chunks.due(step):
            obs = benchmark.observation(raw, task.language)
            if rng.random() < setting.drop_wrist:
                images = {role: image for role, image in obs.images.items() if role != "wrist"}
                obs = dataclasses.replace(obs, images=images)
            chunks.observe(step, obs)
        target = chunks.target(step)
        if target is None:  # nothing to do yet: stand still, fingers as they are
            action = [*benchmark.NO_OP[:-1], gripper]
        else:
            action = [float(value) for value in target]
            gripper = action[-1]
        raw, _, finished, _ = environment.step(action)
        done = bool(finished)
        step += 1
        if frames is not None:
            frames.append(benchmark.pictures(raw)["base"])
    return chunks.result(
        task=task.label,
        prompted=task.label,
        done=task.label if done else "",
        success=done,
        steps=step,
    )


class LiberoRunner:
    """Runs LIBERO episodes in this process; the environment of the last task is kept."""

    def __init__(
        self,
        checkpoint: str,
        renderer: str | None = None,
        device: str = "auto",
        *,
        tasks: tuple[benchmark.LiberoTask, ...],
        robot: str = "libero",
        tokenizer: str | None = None,
        seed: int = benchmark.DEFAULT_SEED,
    ) -> None:
        """``renderer`` was decided by `benchmark.prepare`; ``tasks`` are those jobs may name."""
        self.libero = benchmark.Libero()
        self.policies = PolicyOfSetting(checkpoint, robot, device, tokenizer)
        self.seed = seed
        self._tasks = {task.label: task for task in tasks}
        self._open: tuple[benchmark.LiberoTask, Any, np.ndarray] | None = None

    def run(self, job: EpisodeJob, frames: list[np.ndarray] | None = None) -> Result:
        """One episode; the job's seed is the number of the trial.

        Raises:
            benchmark.LiberoError: no such trial, a policy for another robot, or LIBERO is not
                complete.

        """
        policy = self.policies.get(job.setting)
        benchmark.check_policy(policy)
        task = self._tasks[job.task]
        environment, states = self._environment(task)
        if job.seed >= len(states):
            raise benchmark.LiberoError(
                f"trial {job.seed} of {task.label}; it has the trials 0 to {len(states) - 1}"
            )
        maker = chunk_generator(policy, job.setting)
        return run_episode(
            environment,
            states[job.seed],
            task,
            maker,
            job.setting,
            job.seed,
            self.seed,
            frames,
        )

    def close(self) -> None:
        """Free the environment's GL context."""
        if self._open is not None:
            self._open[1].close()
            self._open = None

    def _environment(self, task: benchmark.LiberoTask) -> tuple[Any, np.ndarray]:
        if self._open is None or self._open[0] != task:
            self.close()
            states = self.libero.initial_states(task)
            self._open = (task, self.libero.environment(task), states)
        return self._open[1], self._open[2]


def suite_totals(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    """Summary of all episodes of each suite, one entry per setting and suite."""
    suites = []
    for row in rows:
        name = str(row["task"]).partition("/")[0]
        done = name if row["success"] else ""
        suites.append({**row, "task": name, "prompted": name, "done": done})
    return summarize(suites)
