"""One replica of a fleet, as Ray starts it. Needs no Ray itself, and imports little by itself.

Importing torch and loading a policy takes seconds of CPU time, which the replicas that answer
meanwhile need. So both happen in a thread that steps back behind them.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pi05_ros.serving.fleet.loaded_replica import LoadedReplica

STEP_BACK = 5
"""Nice levels that a replica starts behind those that answer."""


class FleetReplica:
    """A policy of one process; the arguments are those of `LoadedReplica`, as are the methods."""

    def __init__(
        self, checkpoint: str, load: Mapping[str, Any], max_frame: int, mode: str
    ) -> None:
        with ThreadPoolExecutor(1, initializer=_step_back) as pool:
            self._loaded = pool.submit(_loaded, checkpoint, load, max_frame, mode).result()

    def describe(self) -> bytes:
        """Metadata of the policy, packed."""
        return self._loaded.describe()

    def infer(self, frame: bytes, openpi: bool, carried: bytes) -> tuple[bytes, bytes]:
        """Answer one request."""
        return self._loaded.infer(frame, openpi, carried)

    def check_health(self) -> None:
        """A real inference on black images; raises what it raises."""
        self._loaded.check_health()


def _step_back() -> None:
    """Of this thread alone: the one that answers later runs as it did."""
    thread = threading.get_native_id()
    now = os.getpriority(os.PRIO_PROCESS, thread)
    os.setpriority(os.PRIO_PROCESS, thread, min(19, now + STEP_BACK))


def _loaded(checkpoint: str, load: Mapping[str, Any], max_frame: int, mode: str) -> LoadedReplica:
    from pi05_ros.serving.fleet.loaded_replica import LoadedReplica

    return LoadedReplica(checkpoint, load, max_frame, mode)
