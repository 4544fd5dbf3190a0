"""The first frame of the server: what it serves, typed, so that a client can refuse it."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

import pi05_ros
from pi05_ros.policy.checkpoints.recipe import Recipe
from pi05_ros.policy.interface import PolicyInfo
from pi05_ros.policy.robots.openpi_keys import OPENPI_KEYS
from pi05_ros.policy.robots.profile import RobotProfile

PROTOCOL = 1
"""Version of our own request form."""


def server_metadata(
    info: PolicyInfo,
    robot: RobotProfile,
    statistics_hash: str,
    max_frame: int,
    chunk_modes: tuple[str, ...] = (),
    kv_reuse: bool = True,
) -> dict[str, Any]:
    """Plain maps, lists, numbers and texts about a policy, for the first frame.

    Args:
        info, robot: of the policy.
        statistics_hash: see there.
        max_frame: bytes of a request.
        chunk_modes: accepted values of a request's ``chunk_mode``; empty where chunks stand
            alone, so that its ``kv_reuse`` is not accepted either.
        kv_reuse: whether other values than 1 are accepted for it.

    """
    keys = OPENPI_KEYS.get(robot.name)
    openpi = {"images": dict(keys.images), "state": list(keys.state)} if keys else None
    return {
        "server": "pi05_ros",
        "version": pi05_ros.__version__,
        "protocol": PROTOCOL,
        "checkpoint": info.checkpoint,
        "checkpoint_hash": info.checkpoint_hash,
        "statistics_hash": statistics_hash,
        "random_weights": bool(info.random_weights),
        "robot": info.robot,
        "backend": info.backend,
        "device": info.device,
        "precision": {
            "vision": info.precision.vision,
            "prefill": info.precision.prefill,
            "denoise": info.precision.denoise,
        },
        "denoise_steps": int(info.denoise_steps),
        "horizon": int(info.horizon),
        "step_s": float(info.step_s),
        "action": {
            "names": list(robot.action_names),
            "meanings": [meaning.name.lower() for meaning in robot.action_meanings],
            "units": [unit.name.lower() for unit in robot.command_units],
            "frame": "",
            "pose_groups": [group.as_dict() for group in robot.pose_groups],
        },
        "state": {
            "names": list(robot.state_names),
            "units": [unit.name.lower() for unit in robot.observed_units],
        },
        "cameras": list(robot.camera_roles),
        "required_cameras": list(robot.required_roles),
        "default_prompt": robot.default_prompt or "",
        "assumptions": list(info.assumptions),
        "openpi_keys": openpi,
        "max_frame_bytes": max_frame,
        "chunk_modes": list(chunk_modes),
        "kv_reuse": kv_reuse and bool(chunk_modes),
    }


def statistics_hash(recipe: Recipe) -> str:
    """sha256 over the numbers that normalize state and actions."""
    digest = hashlib.sha256()
    for part in (recipe.normalization.state, recipe.normalization.actions):
        digest.update(f"{part.kind} {part.family} {part.eps!r}".encode())
        for name in sorted(part.stats):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(part.stats[name], np.float64).tobytes())
    return f"sha256:{digest.hexdigest()}"
