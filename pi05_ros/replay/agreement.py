"""What a comparison of a policy with demonstrations gave: figures, verdict, likely faults."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pi05_ros.replay.faults.windows import BAD, CAP, Hypothesis, Windows

SHOWN = 3


@dataclass(frozen=True)
class Agreement:
    """How chunks and demonstration agree.

    Attributes:
        windows: what was compared.
        errors: relative error per column ``[A]``; 0 is equal, 1 as far off as standing still.
        lag_s: shift of the chunks against what was done at which they agree best.
        faults: most likely first; empty if nothing is accused.
        judged: whether the demonstrator moves enough to say anything.
        commanded: whether recorded commands were compared with, not measured joints.

    """

    windows: Windows
    errors: np.ndarray
    lag_s: float
    faults: tuple[Hypothesis, ...]
    judged: bool
    commanded: bool

    @property
    def agrees(self) -> bool:
        """Whether every column follows the demonstrator."""
        return bool(self.judged and (self.errors <= BAD).all())

    def lines(self) -> list[str]:
        """Report for people."""
        w = self.windows
        what = "recorded commands" if self.commanded else "measured joints"
        lines = [f"compared        {len(w.chunks)} chunks with {what}"]
        away = np.sqrt(np.nanmean((w.chunks - w.slice()) ** 2, axis=0))
        last = w.horizon - 1
        for j, name in enumerate(w.names):
            word = "" if self.errors[j] <= BAD else "  does not follow"
            lines.append(
                f"{name:15} off by {away[0, j]:.3g} at once, "
                f"{away[last // 2, j]:.3g} after {last // 2 * w.step_s:.2g} s, "
                f"{away[last, j]:.3g} after {last * w.step_s:.2g} s; "
                f"relative error {self.errors[j]:.3f}{word}"
            )
        lines.append(f"best lag        {self.lag_s:+.2f} s")
        if not self.judged:
            lines.append("verdict         the demonstrator hardly moves: nothing can be said")
        elif self.agrees:
            lines.append("verdict         the policy does what the demonstrator did")
        elif not self.faults:
            lines.append(
                "verdict         the policy does something else, and no fault of convention "
                "explains it (another task, another robot, an undertrained policy?)"
            )
        base = np.minimum(self.errors, CAP)
        for place, fault in enumerate(self.faults[:SHOWN]):
            bad = base > BAD
            kept = 100 * fault.left(bad) / float(base[bad].sum())
            word = "most likely    " if place == 0 else "or             "
            lines.append(
                f"{word} {fault.text} [{fault.kind} {fault.number:.3g}]: corrected, {kept:.0f} % "
                "of the error is left"
            )
        return lines

    def write(self, path: Path) -> None:
        """Write as JSON."""
        w = self.windows
        data = {
            "agrees": self.agrees,
            "judged": self.judged,
            "windows": len(w.chunks),
            "compared_with": "joint_commands" if self.commanded else "joint_states",
            "lag_s": self.lag_s,
            "errors": dict(zip(w.names, map(float, np.minimum(self.errors, CAP)), strict=True)),
            "faults": [
                {
                    "kind": fault.kind,
                    "text": fault.text,
                    "columns": list(fault.columns),
                    "number": fault.number,
                }
                for fault in self.faults
            ],
        }
        path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
