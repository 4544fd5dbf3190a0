"""A policy on a server, from the same configuration as one in this process."""

from __future__ import annotations

from pi05_ros.policy.policy_config import PolicyConfig
from pi05_ros.policy.remote.remote_options import is_remote
from pi05_ros.policy.remote.remote_policy import RemotePolicy, load_remote


def remote_from_config(config: PolicyConfig) -> RemotePolicy | None:
    """Policy of the server that a configuration names, or None if it names none."""
    checkpoint = str(config.checkpoint)
    if not is_remote(checkpoint) and config.backend != "remote":
        return None
    return load_remote(
        checkpoint,
        backend=config.backend,
        robot=None if config.robot is None else str(config.robot),
        seed=config.seed,
        denoise_steps=config.denoise_steps,
        prompt=config.prompt,
        options=config.backend_options,
    )
