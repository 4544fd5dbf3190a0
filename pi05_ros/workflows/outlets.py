"""Where a workflow tells what it does."""

from __future__ import annotations

from dataclasses import dataclass

from pi05_ros.workflows.engine_requests import Progress, Say


@dataclass(frozen=True)
class Outlets:
    """Where a workflow tells what it does.

    Attributes:
        say: results for the user.
        warn: what the user should know besides.
        progress: observations done and in all.

    """

    say: Say = print
    warn: Say = lambda text: None
    progress: Progress = lambda done, total: None
