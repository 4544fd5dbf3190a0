"""What a policy server says of itself, checked against the robot, and how its answers are read."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pi05_ros.backends.engine import Precision
from pi05_ros.policy.errors import PolicyError
from pi05_ros.policy.interface import PolicyInfo
from pi05_ros.policy.remote.errors import RemoteError
from pi05_ros.policy.robots.openpi_keys import OPENPI_KEYS
from pi05_ros.policy.robots.profile import RobotProfile
from pi05_ros.policy.robots.profile_yaml import load_profile

MAX_HORIZON = 1000


def _text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= 300


def _texts(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= 100 and all(map(_text, value))


def _whole(low: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and low <= value <= MAX_HORIZON


_TYPED: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("server", "checkpoint_hash", "statistics_hash", "backend", "device"), _text),
    **dict.fromkeys(("assumptions", "chunk_modes"), _texts),
    "horizon": _whole(1),
    "denoise_steps": _whole(0),
    **dict.fromkeys(("random_weights", "kv_reuse"), lambda value: isinstance(value, bool)),
}
"""What is used of the metadata, and whether a value is one that can be."""


@dataclass(frozen=True)
class ServerFacts:
    """A server whose metadata fits the robot.

    Attributes:
        own: it is `pi05 serve`: SI units, typed answers, seeds, JPEG.
        robot: profile that both sides agree on.
        metadata: the first frame, typed as `_TYPED` says; what another server says otherwise is
            left out.
        assumptions: what no metadata told.

    """

    own: bool
    robot: RobotProfile
    metadata: Mapping[str, Any]
    assumptions: tuple[str, ...] = field(default=())

    @property
    def identity(self) -> str:
        """Which model it is, to notice a change; empty where the server does not say."""
        parts = (self.metadata.get(name) for name in ("checkpoint_hash", "statistics_hash"))
        return " ".join(str(part) for part in parts if part)

    def require_continuation(self, mode: str, reuse: str = "1") -> None:
        """Check that the server continues chunks in a mode and by a rule; raises RemoteError."""
        modes = self.metadata.get("chunk_modes")
        if not self.own or not modes:
            raise RemoteError(
                "the server's chunks stand alone; accepted: chunk_mode plain with kv_reuse 1"
            )
        if mode not in modes:
            raise RemoteError(
                f"the server has no chunk_mode {mode!r}; accepted: {', '.join(modes)}"
            )
        if reuse != "1" and not self.metadata.get("kv_reuse", True):
            raise RemoteError(f"the server has no kv_reuse {reuse!r} (a fleet?); accepted: 1")

    def info(self, url: str) -> PolicyInfo:
        """The policy's description."""
        meta = self.metadata
        return PolicyInfo(
            checkpoint=url,
            checkpoint_hash=str(meta.get("checkpoint_hash") or "remote: not said"),
            random_weights=meta.get("random_weights", False),
            robot=self.robot.name,
            backend="remote",
            backend_reason=f"{meta.get('server') or 'openpi protocol'} at {url}, "
            f"{meta.get('backend') or 'backend not said'} on {meta.get('device') or 'its device'}",
            device=str(meta.get("device") or "remote"),
            precision=_precision(meta.get("precision")),
            denoise_steps=meta.get("denoise_steps", 0),
            horizon=meta.get("horizon") or self.robot.horizon or 0,
            step_s=self.robot.step_s,
            action_names=self.robot.action_names,
            camera_roles=self.robot.camera_roles,
            state_names=self.robot.state_names,
            tokenizer="remote",
            assumptions=(*meta.get("assumptions", ()), *self.assumptions),
        )

    def state_as_trained(self, state: np.ndarray) -> np.ndarray:
        """State ``[n]`` in openpi's numbers."""
        maps = self.robot.state_maps
        return np.array([m.to_model(v) for m, v in zip(maps, state, strict=True)], np.float64)

    def actions(self, answer: Any) -> np.ndarray:
        """Actions ``[H, A]`` float32 in the profile's units, of an answer.

        Raises:
            RemoteError: the answer is not what the robot needs.

        """
        columns = len(self.robot.action_names)
        actions = answer.get("actions") if isinstance(answer, Mapping) else None
        if not isinstance(actions, np.ndarray) or actions.dtype.kind != "f":
            raise RemoteError("the answer has no array of floats named actions")
        if actions.ndim != 2 or actions.shape[1] != columns:
            raise RemoteError(
                f"the answer's actions are {list(actions.shape)}; the robot has {columns} columns"
            )
        most = self.metadata.get("horizon", MAX_HORIZON)
        if not 0 < len(actions) <= most:
            raise RemoteError(f"the answer has {len(actions)} steps; accepted: 1 to {most}")
        if not np.isfinite(actions).all():
            raise RemoteError("the answer's actions hold values that are not finite")
        if self.own:
            names = answer.get("names")
            if not _texts(names) or names != list(self.robot.action_names):
                raise RemoteError("the answer's action names are not those of the robot profile")
            return np.array(actions, np.float32)
        maps = self.robot.action_maps
        parts = [
            unit_map.command(actions[:, i].astype(np.float64)) for i, unit_map in enumerate(maps)
        ]
        return np.stack(parts, axis=1).astype(np.float32)


def read_metadata(
    metadata: Mapping[Any, Any], robot: RobotProfile | None, control_hz: float | None = None
) -> ServerFacts:
    """Check a first frame.

    Args:
        metadata: as decoded; other servers of the protocol may send an empty map.
        robot: profile that was asked for; None takes the shipped one that the server names.
        control_hz: rate in place of the profile's.

    Raises:
        RemoteError: the server serves another robot, or does not say which and none was named.

    """
    meta = {key.decode() if isinstance(key, bytes) else key: v for key, v in metadata.items()}
    wrong = [name for name, right in _TYPED.items() if name in meta and not right(meta[name])]
    if "server" not in wrong and meta.get("server") == "pi05_ros":
        if wrong or "random_weights" not in meta:
            name = wrong[0] if wrong else "random_weights"
            raise RemoteError(
                f"the server's metadata is not as accepted: {name} is {meta.get(name)!r:.60}"
            )
        return _own(meta, robot, control_hz)
    for name in wrong:
        del meta[name]
    if robot is None:
        raise RemoteError("the server does not say which robot it serves; name the robot profile")
    if robot.name not in OPENPI_KEYS:
        raise RemoteError(
            f"openpi's keys of robot {robot.name!r} are not known; known: {', '.join(OPENPI_KEYS)}"
        )
    robot = _at_rate(robot, control_hz)
    assumption = (
        f"the server does not describe its actions: they are taken as those of robot profile "
        f"{robot.name!r}, {len(robot.action_names)} columns every {robot.step_s:g} s"
    )
    return ServerFacts(False, robot, meta, (assumption,))


def _at_rate(robot: RobotProfile, control_hz: float | None) -> RobotProfile:
    return robot if control_hz is None else dataclasses.replace(robot, control_hz=control_hz)


def _own(
    meta: Mapping[str, Any], robot: RobotProfile | None, control_hz: float | None
) -> ServerFacts:
    try:
        action, state = meta["action"], meta["state"]
        said = {
            "action names": tuple(action["names"]),
            "action meanings": tuple(action["meanings"]),
            "action units": tuple(action["units"]),
            "state names": tuple(state["names"]),
            "state units": tuple(state["units"]),
            "seconds per step": round(float(meta["step_s"]), 9),
            "cameras": tuple(meta["cameras"]),
            "pose groups": list(action.get("pose_groups", [])),
        }
        name = str(meta["robot"])
    except (LookupError, AttributeError, TypeError, ValueError, OverflowError) as error:
        raise RemoteError(f"the server's metadata is incomplete: {error!s:.100}") from error
    if robot is None:
        try:
            robot = load_profile(name)
        except PolicyError as error:
            raise RemoteError(
                f"the server serves robot {name!r:.60}, which is not shipped; name the profile"
            ) from error
    robot = _at_rate(robot, control_hz)
    here = {
        "action names": robot.action_names,
        "action meanings": tuple(meaning.name.lower() for meaning in robot.action_meanings),
        "action units": tuple(unit.name.lower() for unit in robot.command_units),
        "state names": robot.state_names,
        "state units": tuple(unit.name.lower() for unit in robot.observed_units),
        "seconds per step": round(robot.step_s, 9),
        "cameras": robot.camera_roles,
        "pose groups": [group.as_dict() for group in robot.pose_groups],
    }
    for what, value in here.items():
        try:
            same = bool(said[what] == value)
        except ValueError:  # arrays in it
            same = False
        if not same:
            raise RemoteError(
                f"the server's model disagrees with robot profile {robot.name!r}: {what} are "
                f"{said[what]!s:.200} there and {value!s:.200} here"
            )
    return ServerFacts(True, robot, meta)


def _precision(said: Any) -> Precision:
    try:
        return Precision(said["vision"], said["prefill"], said["denoise"])
    except (LookupError, TypeError, ValueError):
        return Precision()
