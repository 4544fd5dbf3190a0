"""One episode of a policy in the simulator, in-process, with everything that can be varied.

Time is counted in control steps: an inference that takes ``delay_ms`` hands its chunk over
``ceil(delay / step)`` steps after its observation, while the arm goes on with what it has.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields

import numpy as np

from pi05_ros.policy import Observation, Policy
from pi05_ros.policy.execution.chunk_maker import ChunkMaker
from pi05_ros.policy.execution.chunks import TimedChunk
from pi05_ros.policy.execution.limits import JointLimits, MotionFilter
from pi05_ros.policy.execution.strategies import Ensemble, ReplaceAfter, Strategy
from pi05_ros.policy.kv_reuse import make_rule
from pi05_ros.sim.demonstrations import RENDER_SIZE
from pi05_ros.sim.tasks import MAX_STEPS, TASKS, Referee
from pi05_ros.sim.world import (
    AREA_X,
    AREA_Y,
    BLOCK_GAP,
    BLOCK_HALF,
    BLOCKS,
    CAMERAS,
    CONTROL_DT,
    World,
)

CHUNKING = ("naive", "ensemble", "rtc-vjp", "rtc-identity", "rtc-trained")
NUDGE_M = 0.04
NUDGE_STEPS = (4, 16)
"""Range of the control step of a nudge."""
_STEP_NS = round(CONTROL_DT * 1e9)


@dataclass(frozen=True)
class Setting:
    """What is varied between episodes; one row of a results table is one setting.

    Attributes:
        backend: engine.
        precision: of all three stages, "auto", or imitated: "fake-fp8", "fake-int8".
        denoise_steps: Euler steps of the flow.
        chunking: "naive": the new chunk replaces the old; "ensemble": they are averaged; "rtc-":
            the new one continues the old (guided by VJP or identity, or trained prefix).
        replan: control steps between two observations that are answered; at least the delay.
        delay_ms: time from observation to usable chunk.
        kv_reuse: "1", "2", ... or "dynamic".
        drop_wrist: probability that an observation lacks the wrist camera.
        max_steps: control steps an episode may take.
        nudge: probability that the asked block is pushed aside by 4 cm once, early on.

    """

    backend: str = "eager"
    precision: str = "fp32"
    denoise_steps: int = 10
    chunking: str = "naive"
    replan: int = 8
    delay_ms: int = 0
    kv_reuse: str = "1"
    drop_wrist: float = 0.0
    max_steps: int = MAX_STEPS
    nudge: float = 0.0

    def __post_init__(self) -> None:
        if self.chunking not in CHUNKING:
            raise ValueError(f"chunking {self.chunking!r}; accepted: {', '.join(CHUNKING)}")
        if not 0 <= self.delay_ms <= 2000 or not 1 <= self.replan <= 1000:
            raise ValueError("delay_ms: 0 to 2000; replan: 1 to 1000 steps")
        if not 1 <= self.max_steps <= MAX_STEPS:
            raise ValueError(f"max_steps: 1 to {MAX_STEPS}")
        if not (0 <= self.drop_wrist <= 1 and 0 <= self.nudge <= 1):
            raise ValueError("drop_wrist and nudge: probabilities from 0 to 1")
        make_rule(self.kv_reuse)

    @property
    def delay_steps(self) -> int:
        """Control steps from observation to usable chunk."""
        return math.ceil(self.delay_ms / 1e3 / CONTROL_DT - 1e-9)

    @property
    def label(self) -> str:
        """The values that differ from the defaults, for tables."""
        parts = [
            f"{item.name}={getattr(self, item.name)}"
            for item in fields(self)
            if getattr(self, item.name) != item.default
        ]
        return " ".join(parts) or "default"


@dataclass(frozen=True)
class Result:
    """One episode.

    Attributes:
        task: what was to be done, ``prompted``: the task whose words the policy was given.
        done: tasks that were done, joined by "+".
        success: whether ``task`` was done.
        steps: control steps until then, or until the end.
        inferences: chunks made, ``fresh``: those with a KV cache of their own.
        seam_max: largest difference over all joints, in rad, between what the old and the new
            chunk say for the step at which the new one takes over; ``seam_mean`` over seams.
        kick_mean: mean over seams of the largest second difference of the targets, before any
            limits, in the step before, at and after the seam, rad: a bend in the path.

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

    def row(self) -> dict[str, object]:
        """Flat, for CSV and JSON."""
        return asdict(self)


def run_episode(
    world: World,
    maker: ChunkMaker,
    limits: JointLimits,
    setting: Setting,
    task: str,
    seed: int,
    prompted: str | None = None,
    frames: list[np.ndarray] | None = None,
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
        frames: gets a base-camera picture per control step if given.

    """
    world.reset(seed)
    maker.reset()
    rng = np.random.default_rng([seed, 2])
    prompt = TASKS[prompted or task].prompt
    strategy: Strategy = Ensemble() if setting.chunking == "ensemble" else ReplaceAfter(0)
    motion = MotionFilter(limits, CONTROL_DT)
    motion.reset(world.joint_positions)
    referee = Referee()
    coming: tuple[int, TimedChunk] | None = None
    current: TimedChunk | None = None
    seams: list[float] = []
    bends: list[int] = []
    targets: list[np.ndarray] = []
    inferences = 0
    next_inference = 0
    nudge_at = int(rng.integers(*NUDGE_STEPS)) if rng.random() < setting.nudge else -1
    for step in range(setting.max_steps):
        if step == nudge_at:
            _nudge(world, TASKS[task].block, rng)
        now = step * _STEP_NS
        if step >= next_inference and coming is None:
            images = {c: world.render(c, RENDER_SIZE, RENDER_SIZE) for c in CAMERAS}
            if rng.random() < setting.drop_wrist:
                del images["wrist"]
            obs = Observation(images=images, state=world.joint_positions, prompt=prompt)
            noise_seed = seed * 1000 + inferences
            made = maker.make(obs, step, setting.delay_steps, noise_seed)
            inferences += 1
            next_inference = step + max(setting.replan, setting.delay_steps)
            chunk = TimedChunk(
                round(made.anchor * _STEP_NS), _STEP_NS, made.chunk.actions.astype(float)
            )
            coming = (step + setting.delay_steps, chunk)
        if coming is not None and step >= coming[0]:
            chunk = coming[1]
            if current is not None and now < current.end_ns:
                seams.append(float(np.abs(chunk.at(now) - current.at(now))[:6].max()))
                bends.append(len(targets))
            strategy.add(chunk)
            current, coming = chunk, None
        target = strategy.target(now)
        if target is None and current is None:
            world.step(world.targets)  # the first chunk is still being computed
        else:
            targets.append(targets[-1] if target is None else target)
            world.step(motion.step(target))
        if frames is not None:
            frames.append(world.render("base", RENDER_SIZE, RENDER_SIZE))
        referee.watch(world)
        if referee.done(task):
            break
    return Result(
        seed=seed,
        task=task,
        prompted=prompted or task,
        done="+".join(referee.done_at),
        success=referee.done(task),
        steps=referee.steps,
        inferences=inferences,
        fresh=maker.fresh_contexts,
        seam_max=max(seams, default=0.0),
        seam_mean=float(np.mean(seams)) if seams else 0.0,
        kick_mean=_kick(targets, bends),
    )


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


def _kick(targets: list[np.ndarray], bends: list[int]) -> float:
    if len(targets) < 3 or not bends:
        return 0.0
    curve = np.abs(np.diff(np.array(targets)[:, :6], 2, axis=0)).max(axis=1)
    # Row k of the curve is the bend at target k + 1.
    windows = [curve[max(0, k - 2) : k + 1] for k in bends]
    return float(np.mean([w.max() for w in windows if w.size]))


def chunk_maker(policy: Policy, setting: Setting) -> ChunkMaker:
    """The policy in the chunk mode and with the KV rule of a setting."""
    mode = setting.chunking.removeprefix("rtc-") if "rtc" in setting.chunking else "plain"
    return ChunkMaker(policy, mode, reuse=make_rule(setting.kv_reuse))
