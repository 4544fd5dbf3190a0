"""One episode of a policy in the simulator, in-process, with everything that can be varied.

Time is counted in control steps: an inference that takes ``delay_ms`` hands its chunk over
``ceil(delay / step)`` steps after its observation, while the arm goes on with what it has.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field, replace

import numpy as np

from pi05_ros.execution.executor_settings import ExecutorSettings
from pi05_ros.execution.limits import JointLimits
from pi05_ros.execution.motion.make_filter import Filter, make_filter
from pi05_ros.execution.strategies import Ensemble, ReplaceAfter, Strategy
from pi05_ros.execution.timed_chunk import TimedChunk
from pi05_ros.policy import Observation, Policy
from pi05_ros.policy.chunking.chunk_generator import ChunkGenerator
from pi05_ros.policy.chunking.kv_reuse import make_rule
from pi05_ros.sim.arm.pose_actions import PoseActions
from pi05_ros.sim.arm.render import RENDER_SIZE
from pi05_ros.sim.arm.tasks import TASKS, Referee
from pi05_ros.sim.arm.world import (
    AREA_X,
    AREA_Y,
    BLOCK_GAP,
    BLOCK_HALF,
    BLOCKS,
    CAMERAS,
    World,
)
from pi05_ros.sim.evaluation.setting import Setting, chunk_mode

JERK_TIME_S = 0.05
"""With limiting ruckig: jerk limits reach the full acceleration in this time."""
NUDGE_M = 0.04
NUDGE_STEPS = (4, 16)
"""Range of the control step of a nudge."""


@dataclass(frozen=True)
class Result:
    """One episode.

    Attributes:
        task: what was to be done, ``prompted``: the task whose words the policy was given.
        done: tasks that were done, joined by "+".
        success: whether ``task`` was done.
        steps: control steps until then, or until the end.
        inferences: chunks made, ``fresh``: those with a KV cache of their own.
        seam_max: largest difference over the first six actions (joints in rad) between what the
            old and the new chunk say for the step at which the new one takes over;
            ``seam_mean`` over seams.
        kick_mean: mean over seams of the largest second difference of the targets, before any
            limits, in the step before, at and after the seam: a bend in the path.
        boundary_step_max: largest joint step of the emitted commands (of the arm behind the
            limits) where a new chunk takes over; ``boundary_step_mean`` over those places,
            ``inner_step_mean`` over all other steps: what the motion itself makes.
        acceleration_mean, jerk_mean: root of the mean square over the commands of the second and
            third difference per control period, largest of the first six joints (rad/s^2,
            rad/s^3); ``acceleration_max``, ``jerk_max`` the largest.
        infer_ms: wall time of each inference; not part of `row`, so that rows can be repeated.

    """

    seed: int
    task: str
    prompted: str
    done: str
    success: bool
    steps: int
    inferences: int
    fresh: int
    seam_max: float
    seam_mean: float
    kick_mean: float
    boundary_step_max: float
    boundary_step_mean: float
    inner_step_mean: float
    acceleration_mean: float = 0.0
    acceleration_max: float = 0.0
    jerk_mean: float = 0.0
    jerk_max: float = 0.0
    infer_ms: tuple[float, ...] = field(default=(), compare=False, repr=False)

    def row(self) -> dict[str, object]:
        """Flat, for CSV and JSON."""
        values = asdict(self)
        del values["infer_ms"]
        return values


class Chunking:
    """The chunks of one episode: when they are made, when they are used, how they fit together.

    Args:
        maker: policy, chunk mode and KV rule of the setting; reset here.
        setting: what is varied.
        seed: of the episode; the flow noise follows from it.
        poses: converts chunks to end-effector actions and back, if the setting asks for it.

    """

    def __init__(
        self,
        maker: ChunkGenerator,
        setting: Setting,
        seed: int,
        poses: PoseActions | None = None,
    ) -> None:
        self._poses = poses
        maker.reset()
        self.maker = maker
        self.setting = setting
        self.seed = seed
        self.inferences = 0
        self.seams: list[float] = []
        self._step_ns = round(setting.STEP_S * 1e9)
        self._strategy: Strategy = (
            Ensemble() if setting.chunking == "ensemble" else ReplaceAfter(0)
        )
        self._coming: tuple[int, TimedChunk] | None = None
        self._current: TimedChunk | None = None
        self._next = 0
        self._bends: list[int] = []
        self._targets: list[np.ndarray] = []
        self._emitted: list[np.ndarray] = []
        self._infer_ms: list[float] = []

    @property
    def started(self) -> bool:
        """Whether a chunk has been used."""
        return self._current is not None

    def due(self, step: int) -> bool:
        """Whether a new observation is answered at this control step."""
        return step >= self._next and self._coming is None

    def observe(self, step: int, obs: Observation) -> None:
        """Make a chunk; it can be used ``delay_steps`` from now."""
        delay = self.setting.delay_steps
        began = time.perf_counter()
        made = self.maker.make(obs, step, delay, self.seed * 1000 + self.inferences)
        self._infer_ms.append((time.perf_counter() - began) * 1e3)
        self.inferences += 1
        self._next = step + max(self.setting.replan, delay)
        start_ns = round(made.anchor * self._step_ns)
        actions = made.chunk.actions.astype(float)
        chunk: TimedChunk | None = TimedChunk(start_ns, self._step_ns, actions)
        if self._poses is not None:
            chunk = self._poses.chunk(actions, obs.state, start_ns, self._step_ns)
        if chunk is not None:
            self._coming = (step + delay, chunk)

    def target(self, step: int) -> np.ndarray | None:
        """Action ``[n]`` of a control step; None where no chunk reaches. Call once per step."""
        now = step * self._step_ns
        if self._coming is not None and step >= self._coming[0]:
            chunk = self._coming[1]
            if self._current is not None and now < self._current.end_ns:
                self.seams.append(float(np.abs(chunk.at(now) - self._current.at(now))[:6].max()))
                self._bends.append(len(self._targets))
            self._strategy.add(chunk)
            self._current, self._coming = chunk, None
        target = self._strategy.target(now)
        if target is not None or self._targets:
            self._targets.append(self._targets[-1] if target is None else target)
        return target

    def command(self, motion: Filter, step: int) -> np.ndarray | None:
        """Command ``[n]`` of a control step behind the limits; None before the first chunk."""
        target = self.target(step)
        if target is None and not self.started:
            return None
        command = motion.follow(self._strategy, step * self._step_ns)
        if command is None:
            command = motion.brake()
        self.emitted(command)
        return command

    def emitted(self, command: np.ndarray) -> None:
        """Tell what became of the last target; without it the targets count as commands."""
        self._emitted.append(command)

    def result(self, *, task: str, prompted: str, done: str, success: bool, steps: int) -> Result:
        """Result of the episode."""
        jumps = _steps(self._emitted or self._targets)
        # Row k is the step to command k + 1.
        at = np.zeros(len(jumps), dtype=bool)
        at[[k - 1 for k in self._bends if 0 < k <= len(jumps)]] = True
        return Result(
            seed=self.seed,
            task=task,
            prompted=prompted,
            done=done,
            success=success,
            steps=steps,
            inferences=self.inferences,
            fresh=self.maker.fresh_caches,
            seam_max=max(self.seams, default=0.0),
            seam_mean=float(np.mean(self.seams)) if self.seams else 0.0,
            kick_mean=_kick(self._targets, self._bends),
            boundary_step_max=float(jumps[at].max(initial=0.0)),
            boundary_step_mean=float(jumps[at].mean()) if at.any() else 0.0,
            inner_step_mean=float(jumps[~at].mean()) if not at.all() else 0.0,
            infer_ms=tuple(self._infer_ms),
            **_rates(self._emitted, self.setting.STEP_S),
        )


def run_episode(
    world: World,
    maker: ChunkGenerator,
    limits: JointLimits,
    setting: Setting,
    task: str,
    seed: int,
    prompted: str | None = None,
    frames: list[np.ndarray] | None = None,
    poses: PoseActions | None = None,
) -> Result:
    """Run until the task is done or time is over.

    Args:
        world: reset here.
        maker: policy, chunk mode and KV rule of the setting.
        limits: of the arm, see config/sim_arm_limits.yaml.
        setting: what is varied.
        task: what counts as success.
        seed: of the scene; the flow noise follows from it too.
        prompted: task whose words are given instead, to see whether they matter.
        frames: gets a base-camera image per control step if given.
        poses: as of `Chunking`.

    """
    world.reset(seed)
    chunks = Chunking(maker, setting, seed, poses)
    rng = np.random.default_rng([seed, 2])
    prompt = TASKS[prompted or task].prompt
    motion = limiter(limits, setting)
    motion.reset(world.joint_positions)
    referee = Referee()
    nudge_at = int(rng.integers(*NUDGE_STEPS)) if rng.random() < setting.nudge else -1
    for step in range(setting.max_steps):
        if step == nudge_at:
            _nudge(world, TASKS[task].block, rng)
        if chunks.due(step):
            images = {c: world.render(c, RENDER_SIZE, RENDER_SIZE) for c in CAMERAS}
            if rng.random() < setting.drop_wrist:
                del images["wrist"]
            chunks.observe(step, Observation(images, world.joint_positions, prompt))
        command = chunks.command(motion, step)
        # Without one the first chunk is still being computed.
        world.step(world.targets if command is None else command)
        if frames is not None:
            frames.append(world.render("base", RENDER_SIZE, RENDER_SIZE))
        referee.watch(world)
        if referee.done(task):
            break
    return chunks.result(
        task=task,
        prompted=prompted or task,
        done="+".join(referee.done_at),
        success=referee.done(task),
        steps=referee.steps,
    )


def limiter(limits: JointLimits, setting: Setting) -> Filter:
    """What keeps the arm within its limits, as a setting says."""
    velocity = limits.velocity * setting.limit_share
    acceleration = limits.acceleration * setting.limit_share
    limits = replace(limits, velocity=velocity, acceleration=acceleration)
    settings = ExecutorSettings(period_s=setting.STEP_S, limiting=setting.limiting)
    if setting.limiting == "ruckig":
        limits = replace(limits, jerk=acceleration / JERK_TIME_S)
        settings = replace(settings, limiting="path", jerk_limiting="ruckig")
    return make_filter(limits, settings)


def _nudge(world: World, name: str, rng: np.random.Generator) -> None:
    """Move a block that lies on the table aside, to where no other block is."""
    here = world.block(name)
    if here[2] > 1.2 * BLOCK_HALF:
        return
    for angle in rng.uniform(0, 2 * np.pi, 20):
        spot = here[:2] + NUDGE_M * np.array([np.cos(angle), np.sin(angle)])
        inside = AREA_X[0] <= spot[0] <= AREA_X[1] and AREA_Y[0] <= spot[1] <= AREA_Y[1]
        others = [world.block(other)[:2] for other in BLOCKS if other != name]
        if inside and all(np.linalg.norm(spot - other) > BLOCK_GAP for other in others):
            world.place_block(name, spot)
            return


def _steps(commands: list[np.ndarray]) -> np.ndarray:
    """Largest change of the first six actions from command to command ``[n - 1]``."""
    if len(commands) < 2:
        return np.zeros(0)
    change: np.ndarray = np.abs(np.diff(np.array(commands)[:, :6], axis=0)).max(axis=1)
    return change


def _rates(commands: list[np.ndarray], dt: float) -> dict[str, float]:
    """Size of the second and third differences of the commands, see `Result`."""
    found = {}
    for order, name in ((2, "acceleration"), (3, "jerk")):
        if len(commands) <= order:
            continue
        rows = np.abs(np.diff(np.array(commands)[:, :6], order, axis=0)).max(axis=1) / dt**order
        found[f"{name}_mean"] = float(np.sqrt(np.mean(rows**2)))
        found[f"{name}_max"] = float(np.max(rows))
    return found


def _kick(targets: list[np.ndarray], bends: list[int]) -> float:
    if len(targets) < 3 or not bends:
        return 0.0
    curve = np.abs(np.diff(np.array(targets)[:, :6], 2, axis=0)).max(axis=1)
    # Row k of the curve is the bend at target k + 1.
    windows = [curve[max(0, k - 2) : k + 1] for k in bends]
    return float(np.mean([w.max() for w in windows if w.size]))


def chunk_generator(policy: Policy, setting: Setting) -> ChunkGenerator:
    """The policy in the chunk mode and with the KV rule of a setting."""
    return ChunkGenerator(
        policy,
        chunk_mode(setting),
        reuse=make_rule(setting.kv_reuse),
        max_guidance=setting.max_guidance,
    )
