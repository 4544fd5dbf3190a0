"""Adversarial episodes of the executor near a wall and a box, measured by a recorder of its own.

python -m pi05_ros.bench.space_episodes --episodes 200
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pi05_ros.bench.space_arms import TOOL_M_PER_S, SphereArms
from pi05_ros.execution.executor import FOLLOWING, Executor, ExecutorSettings
from pi05_ros.execution.limits import JointLimits
from pi05_ros.execution.space.scene import Scene
from pi05_ros.execution.space.space_file import space_from_mapping
from pi05_ros.execution.space.space_guard import SpaceGuard
from pi05_ros.execution.strategies import STRATEGIES, make_strategy
from pi05_ros.execution.timed_chunk import ChunkRefusedError, TimedChunk
from pi05_ros.tables import markdown_table

_STEP_NS = 50_000_000
_BETWEEN = np.linspace(0, 1, 4)[1:]
_ROUNDING = 1 + 1e-6


@dataclass(frozen=True)
class RecordedMotion:
    """What the recorder saw of commands, and of the straight ways between them.

    Attributes:
        clearance: smallest distance in m to anything; below 0 is a contact.
        velocity, acceleration, jerk: largest share of a joint's limit; jerk 0 without limits.
        outside: farthest a joint was outside its range.
        tool: largest speed of the tool point in m/s.
        following: share of the periods that followed chunks.
        travelled: rad of all joints together.

    """

    clearance: float
    velocity: float
    acceleration: float
    jerk: float
    outside: float
    tool: float
    following: float
    travelled: float

    @property
    def contact(self) -> bool:
        """Whether anything touched."""
        return self.clearance <= 0

    @property
    def violated(self) -> bool:
        """Whether a limit was exceeded."""
        shares = max(self.velocity, self.acceleration, self.jerk, self.tool / TOOL_M_PER_S)
        return shares > _ROUNDING or self.outside > 1e-9


def record(
    arms: SphereArms, limits: JointLimits, path: np.ndarray, dt: float, following: float
) -> RecordedMotion:
    """Measure commands ``[k, n]`` that start at rest at the first one."""
    rest = np.zeros((1, path.shape[1]))
    velocity = np.diff(path, axis=0) / dt
    acceleration = np.diff(np.vstack([rest, velocity]), axis=0) / dt
    jerk = np.diff(np.vstack([rest, acceleration]), axis=0) / dt
    clearance, before = min(arms.clearances(path[0])), path[0]
    for row in path[1:]:
        if (row != before).any():
            ways = [before + share * (row - before) for share in _BETWEEN]
            clearance = min(clearance, *(min(arms.clearances(way)) for way in ways))
        before = row
    tool = np.array([arms.centers(row)[1] for row in path])
    return RecordedMotion(
        clearance=clearance,
        velocity=float((np.abs(velocity) / limits.velocity).max()),
        acceleration=float((np.abs(acceleration) / limits.acceleration).max()),
        jerk=float((np.abs(jerk) / limits.jerk_limits).max()),
        outside=float(np.maximum(limits.lower - path, path - limits.upper).max()),
        tool=float(np.max(np.linalg.norm(np.diff(tool, axis=0), axis=1) / dt)),
        following=following,
        travelled=float(np.abs(np.diff(path, axis=0)).sum()),
    )


def run_episode(
    arms: SphereArms,
    seed: int,
    seconds: float = 5.0,
    rate_hz: float = 50.0,
    limiting: str = "path",
    jerk_time_s: float = 0.0,
    jerk_limiting: str = "path",
) -> RecordedMotion:
    """One episode of chunks, teleoperation, stops and speeds that come as they like."""
    rng = np.random.default_rng(seed)
    dt = 1 / rate_hz
    limits = arms.limits(jerk_time_s)
    spec = space_from_mapping(arms.space())
    scene = Scene(arms.urdf(), arms.names, spec)
    settings = ExecutorSettings(period_s=dt, limiting=limiting, jerk_limiting=jerk_limiting)
    core = Executor(
        limits,
        make_strategy(str(rng.choice(STRATEGIES)), int(rng.integers(0, 6))),
        settings,
        SpaceGuard(scene, spec, range(arms.joints), dt),
    )
    place = _start(arms, rng, spec.stop)
    path, following = [place], 0
    make = _chunks(arms, rng)
    teleop: np.ndarray | None = None
    for k in range(int(seconds * rate_hz)):
        now = round(k * dt * 1e9)
        core.measure(place, now)
        if rng.random() < 6 * dt:
            with contextlib.suppress(ChunkRefusedError):
                core.offer(TimedChunk(now, _STEP_NS, make(now / 1e9, place), "p", k), now)
        if rng.random() < (0.3 if teleop is None else 1.0) * dt:
            teleop = None if teleop is not None else rng.uniform(-4, 4, arms.joints)
        if teleop is not None:
            core.teleop.offer(arms.names, teleop.tolist(), now)
        if rng.random() < (3.0 if core.interlocks.halted else 0.3) * dt:
            core.interlocks.halted = not core.interlocks.halted
        if rng.random() < 0.5 * dt:
            core.speed_scale = float(rng.choice([0.3, 1.0, 1.0]))
        command = core.tick(now)
        following += command.mode == FOLLOWING
        if command.positions is not None:
            place = command.positions
        path.append(place)
    return record(arms, limits, np.array(path), dt, following / len(path))


def _start(arms: SphereArms, rng: np.random.Generator, clear_m: float) -> np.ndarray:
    while True:
        place = rng.uniform(-1.2, 1.2, arms.joints)
        if min(arms.clearances(place)) > clear_m:
            return np.asarray(place)


def _chunks(
    arms: SphereArms, rng: np.random.Generator
) -> Callable[[float, np.ndarray], np.ndarray]:
    """Chunks of an episode: to a place and back, sines, or anything, also out of range."""
    kind = rng.choice(["reach", "sines", "anything"])
    phase, pace = rng.uniform(0, 6, arms.joints), rng.uniform(0.5, 2.5, arms.joints)

    def make(now_s: float, place: np.ndarray) -> np.ndarray:
        steps = np.arange(rng.integers(4, 30))[:, None]
        if kind == "sines":
            s = now_s + steps * 0.05
            return np.asarray(1.8 * np.sin(pace * s + phase))
        if kind == "reach":
            return np.asarray(place + (rng.uniform(-3, 3, arms.joints) - place) * steps / 15)
        return np.asarray(rng.uniform(-4, 4, (len(steps), arms.joints)))

    return make


VARIANTS: dict[str, dict[str, object]] = {
    "path": {},
    "joint": {"limiting": "joint"},
    "path, jerk": {"jerk_time_s": 0.1},
    "ruckig": {"jerk_time_s": 0.1, "jerk_limiting": "ruckig"},
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table; exit code 1 if anything touched or a limit was exceeded."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=200, help="in all (default 200)")
    parser.add_argument("--seed", type=int, default=0, help="first seed (default 0)")
    parser.add_argument("--seconds", type=float, default=5.0, help="each (default 5)")
    args = parser.parse_args(arguments)
    groups = [(arms, name) for arms in (SphereArms(7), SphereArms(14, 2)) for name in VARIANTS]
    found: dict[tuple[str, int], list[RecordedMotion]] = {}
    for k in range(args.episodes):
        arms, name = groups[k % len(groups)]
        options = VARIANTS[name]
        seen = run_episode(arms, args.seed + k, args.seconds, **options)  # type: ignore[arg-type]
        found.setdefault((name, arms.joints), []).append(seen)
    rows = []
    for (name, joints), group in found.items():
        most = {
            key: max(getattr(seen, key) for seen in group)
            for key in ("velocity", "acceleration", "jerk", "tool")
        }
        rows.append(
            [
                name, joints, len(group), sum(seen.contact for seen in group),
                sum(seen.violated for seen in group),
                f"{1e3 * min(seen.clearance for seen in group):.1f}",
                f"{most['velocity']:.3f} / {most['acceleration']:.3f} / {most['jerk']:.3f}",
                f"{most['tool']:.3f}",
                f"{np.mean([seen.following for seen in group]):.2f}",
                f"{np.mean([seen.travelled for seen in group]):.1f}",
            ]
        )  # fmt: skip
    head = [
        "limiting", "joints", "episodes", "contacts", "limit violations", "least distance, mm",
        "v / a / j of limit", "tool, m/s", "following", "travelled, rad",
    ]  # fmt: skip
    print(markdown_table(head, rows))
    every = [seen for group in found.values() for seen in group]
    return int(any(seen.contact or seen.violated for seen in every))


if __name__ == "__main__":
    sys.exit(main())
