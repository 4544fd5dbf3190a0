"""Logs a condition when it changes, not each time it is seen."""

from __future__ import annotations

import time
from typing import Any


class EdgeLog:
    """One line when a problem appears or turns into another, one when it is over.

    Args:
        logger: of the node.
        min_interval_s: per key; keeps a flickering condition from flooding the log.

    """

    def __init__(self, logger: Any, min_interval_s: float = 1.0) -> None:
        self._logger = logger
        self._min_interval_s = min_interval_s
        self._logged: dict[str, tuple[str, float]] = {}

    def report(self, key: str, code: str, text: str = "") -> None:
        """State of one condition; an empty code means that it is fine."""
        last, when = self._logged.get(key, ("", -1e9))
        now = time.monotonic()
        if code == last or now - when < self._min_interval_s:
            return
        self._logged[key] = (code, now)
        if code:
            self._logger.warning(f"{key}: {text}")
        else:
            self._logger.info(f"{key}: fine again")

    def clear(self) -> None:
        """Forget all conditions."""
        self._logged.clear()
