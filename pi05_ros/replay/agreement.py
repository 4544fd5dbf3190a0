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
        left_out: windows in which a camera stands still, and which are not among those compared.

    """

    windows: Windows
    errors: np.ndarray
    lag_s: float
    faults: tuple[Hypothesis, ...]
    judged: bool
    commanded: bool
    left_out: int = 0

    @property
    def follows(self) -> bool:
        """Whether every column follows the demonstrator."""
        return bool(self.judged and (self.errors <= BAD).all())

    @property
    def agrees(self) -> bool:
        """Whether every column follows, and the recording has no fault."""
        return self.follows and not self.faults

    def lines(self) -> list[str]:
        """Report for people."""
        w = self.windows
        what = "recorded commands" if self.commanded else "measured joints"
        out = f", without {self.left_out} while a camera stood still" if self.left_out else ""
        lines = [f"compared        {len(w.chunks)} chunks with {what}{out}"]
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
        elif self.follows:
            but = ", but the recording has a fault" if self.faults else ""
            lines.append(f"verdict         the policy does what the demonstrator did{but}")
        elif not self.faults:
            lines.append(
                "verdict         the policy does something else, and no fault of convention "
                "explains it (another task, another robot, an undertrained policy?)"
            )
        base = np.minimum(self.errors, CAP)
        for place, fault in enumerate(self.faults[:SHOWN]):
            bad = base > BAD
            word = "most likely    " if place == 0 else "or             "
            if fault.corrected:
                kept = 100 * fault.left(bad) / float(base[bad].sum())
                then = f"corrected, {kept:.0f} % of the error is left"
            else:
                then = "nothing in the recording corrects it"
            lines.append(f"{word} {fault.text} [{fault.kind} {fault.number:.3g}]: {then}")
        return lines

    def write(self, path: Path) -> None:
        """Write as JSON."""
        w = self.windows
        data = {
            "agrees": self.agrees,
            "judged": self.judged,
            "windows": len(w.chunks),
            "windows_left_out": self.left_out,
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
