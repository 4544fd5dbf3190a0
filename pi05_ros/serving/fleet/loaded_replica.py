"""What a replica of a fleet does: a loaded policy that answers packed requests.

Requests and answers cross the cluster as msgpack, in our own form, so that a replica accepts
nothing that the websocket would refuse.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

from pi05_ros.policy import Observation, Policy
from pi05_ros.policy.remote.array_codec import pack, unpack
from pi05_ros.serving.chunk_rules import ChunkRules
from pi05_ros.serving.metadata import server_metadata, statistics_hash
from pi05_ros.serving.openpi_units import OpenpiUnits
from pi05_ros.serving.requests import parse_request
from pi05_ros.serving.service import warm_up
from pi05_ros.serving.session import Session, offered_modes


class LoadedReplica:
    """A policy of one process.

    Args:
        checkpoint, load: arguments of `Policy.load`.
        max_frame: of the front, for the metadata.
        mode: in which chunks will be asked to continue each other.

    Raises:
        Pi05Error: see `Policy.load`.

    """

    def __init__(
        self, checkpoint: str, load: Mapping[str, Any], max_frame: int, mode: str
    ) -> None:
        self._policy = Policy.load(checkpoint, **load)
        warm_up(self._policy, ChunkRules(mode))
        self._lock = threading.Lock()
        self._openpi = OpenpiUnits(self._policy.recipe)
        self._metadata = server_metadata(
            self._policy.info, self._policy.robot, statistics_hash(self._policy.recipe), max_frame,
            offered_modes(self._policy), kv_reuse=False,
        )  # fmt: skip

    def describe(self) -> bytes:
        """Metadata of the policy, packed."""
        return pack(self._metadata)

    def infer(self, frame: bytes, openpi: bool, carried: bytes) -> tuple[bytes, bytes]:
        """Answer one request in our own form, which names its seed.

        Args:
            frame: packed request.
            openpi: state and answer are in openpi's numbers.
            carried: what it continues, from the answer before; empty for nothing.

        Returns:
            The answer, and what to send with the next request.

        Raises:
            Pi05Error: the request is not as accepted.

        """
        request = parse_request(unpack(frame).value, self._policy.robot)
        with self._lock:
            session = Session(self._policy, openpi=self._openpi)
            if carried:
                session.resume(carried)
            answer = session.answer(dataclasses.replace(request, openpi=openpi))
        answer["checkpoint_hash"] = self._metadata["checkpoint_hash"]
        return pack(answer), session.carried()

    def check_health(self) -> None:
        """A real inference on black images; raises what it raises."""
        robot = self._policy.robot
        obs = Observation(
            {role: np.zeros((224, 224, 3), np.uint8) for role in robot.camera_roles},
            np.zeros(len(robot.state_names)),
            "health check",
        )
        with self._lock:
            chunk = self._policy.infer(obs, seed=0)
        if not np.isfinite(chunk.actions).all():
            raise RuntimeError("the policy's answer is not finite")
