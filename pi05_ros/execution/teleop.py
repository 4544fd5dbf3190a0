"""A person's commands, which come before those of chunks as long as they keep coming."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pi05_ros.execution.limit_sources.joint_limits import JointLimits


class Teleop:
    """Newest target of teleoperation and whether a person is in charge.

    Args:
        limits: of all joints.
        timeout_s: without a new target for this long, the arm is handed back.

    Attributes:
        held: a person took over by `take_over` and stays in charge until it is given back.
        refused: targets that could not be used; `last_refusal` says why the last one was.

    """

    def __init__(self, limits: JointLimits, timeout_s: float) -> None:
        self._limits = limits
        self._timeout_ns = int(timeout_s * 1e9)
        self._target: dict[str, float] = {}
        self._seen_ns: int | None = None
        self.held = False
        self.refused = 0
        self.last_refusal = ""

    def offer(self, names: Sequence[str], positions: Sequence[float], now_ns: int) -> None:
        """Take a target for some or all joints; others keep where they are commanded."""
        known = self._limits.names
        wanted = {n: p for n, p in zip(names, positions, strict=False) if n in known}
        problem = ""
        if len(names) != len(positions):
            problem = f"teleop has {len(names)} names and {len(positions)} positions"
        elif not wanted:
            problem = f"teleop names none of {', '.join(known)}"
        elif not np.isfinite(list(wanted.values())).all():
            problem = "teleop is not finite"
        if problem:
            self.refused += 1
            self.last_refusal = problem
            return
        self._target, self._seen_ns = wanted, now_ns

    def rewind(self) -> None:
        """The clock jumped back: what came before counts no more."""
        self._target, self._seen_ns = {}, None

    def active(self, now_ns: int) -> bool:
        """Whether a person is in charge."""
        if self._seen_ns is not None and now_ns - self._seen_ns > self._timeout_ns:
            self.rewind()
        return self.held or self._seen_ns is not None

    @property
    def has_target(self) -> bool:
        """Whether `target` gives one."""
        return bool(self._target)

    def target(self, command: np.ndarray | None) -> np.ndarray | None:
        """Target ``[n]``, on the turn of the present command; None: brake and hold."""
        if command is None or not self._target:
            return None
        rows = [self._target.get(name, command[i]) for i, name in enumerate(self._limits.names)]
        target = np.array(rows, dtype=np.float64)
        found: np.ndarray = target + self._limits.nearest_turn(target, command)
        return found
