"""Logs a condition when it changes, not each time it is seen."""

from __future__ import annotations

import time
from typing import Any

from pi05_ros.runtime.text import printable

MAX_KINDS = 16  # remembered per key; codes may be texts of exceptions


class EdgeLog:
    """One line for each kind of problem that appears, one when all has been fine for a while.

    A bad source often shows two kinds in turn, what is wrong with its messages and the age of its
    last good one; each is named once. So is one that comes and goes, such as an inference that is
    slower than its rate: chunks are published between the ticks it loses.

    Args:
        logger: of the node.
        min_interval_s: per key; keeps a flickering condition from flooding the log.
        settle_s: time without any problem of the key after which it is fine again.

    """

    def __init__(self, logger: Any, min_interval_s: float = 1.0, settle_s: float = 4.0) -> None:
        self._logger = logger
        self._min_interval_s = min_interval_s
        self._settle_s = settle_s
        self._logged: dict[str, tuple[set[str], float]] = {}
        self._seen: dict[str, float] = {}  # when a problem was reported last

    def report(self, key: str, code: str, text: str = "") -> None:
        """State of one condition; an empty code means that it is fine."""
        named, when = self._logged.get(key, (set(), -1e9))
        now = time.monotonic()
        if code:
            self._seen[key] = now
        elif now - self._seen.get(key, -1e9) < self._settle_s:
            return
        if (code in named if code else not named) or now - when < self._min_interval_s:
            return
        kept = named if len(named) < MAX_KINDS else set()
        self._logged[key] = (kept | {code} if code else set(), now)
        if code:
            self._logger.warning(printable(f"{key}: {text}"))
        else:
            self._logger.info(f"{key}: fine again")

    def clear(self) -> None:
        """Forget all conditions."""
        self._logged.clear()
        self._seen.clear()
