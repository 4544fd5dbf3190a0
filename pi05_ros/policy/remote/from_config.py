"""A policy on a server, from the same configuration as one in this process."""

from __future__ import annotations

from dataclasses import fields

from pi05_ros.backends.create import parse_precision
from pi05_ros.backends.engine import Precision
from pi05_ros.policy.errors import PolicyError
from pi05_ros.policy.policy_config import PolicyConfig
from pi05_ros.policy.remote.remote_options import RemoteOptions, is_remote
from pi05_ros.policy.remote.remote_policy import RemotePolicy


def remote_from_config(config: PolicyConfig) -> RemotePolicy | None:
    """Policy of the server that a configuration names, or None if it names none.

    Raises:
        PolicyError: the address is none, or an option does not go with a server.
        RemoteError: see `RemotePolicy`.

    """
    url = str(config.checkpoint)
    if not is_remote(url) and config.backend != "remote":
        return None
    if not is_remote(url):
        raise PolicyError(
            f"backend remote needs the address of a policy server as checkpoint, "
            f"ws://host:port or wss://host:port; it is {url!r:.200}"
        )
    if config.backend not in ("auto", "remote"):
        raise PolicyError(
            f"backend {config.backend!r} cannot be chosen for {url}: the server has its own"
        )
    _refuse_what_the_server_decides(config, url)
    options = config.backend_options or {}
    known = [entry.name for entry in fields(RemoteOptions)]
    for name in options:
        if name not in known:
            raise PolicyError(f"backend remote has no option {name!r}; it has {', '.join(known)}")
    return RemotePolicy(
        url,
        robot=None if config.robot is None else str(config.robot),
        options=RemoteOptions(**options),
        seed=config.seed,
        denoise_steps=config.denoise_steps,
        prompt=config.prompt,
        horizon=config.horizon,
        control_hz=config.control_hz,
    )


def _refuse_what_the_server_decides(config: PolicyConfig, url: str) -> None:
    """An option that would have no effect here is an error, not ignored."""
    given = {
        "tokenizer": config.tokenizer is not None,
        "precision": parse_precision(config.precision) != Precision(),
        "device": config.device != "auto",
        "threads": config.threads is not None,
        "camera_roles (camera_map)": config.camera_roles is not None,
        "lerobot_era": config.lerobot_era != "auto",
    }
    for name, is_given in given.items():
        if is_given:
            raise PolicyError(f"{name} is decided by the server {url}; give it to `pi05 serve`")
