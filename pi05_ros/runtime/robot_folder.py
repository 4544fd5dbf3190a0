"""What is shipped, or was written by a user, to bring a robot up: profile and executor's files."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

from pi05_ros.errors import Pi05Error
from pi05_ros.resources import robots_dir

EXECUTOR, LIMITS, OUTPUTS = "executor.yaml", "limits.yaml", "outputs.yaml"
JOINT_STATES = "joint_states.yaml"
_NEEDED = (EXECUTOR, LIMITS, OUTPUTS)


class RobotFolderError(Pi05Error, ValueError):
    """A robot for which there are no files to bring it up."""


@dataclass(frozen=True)
class RobotFolder:
    """Files of one robot.

    Attributes:
        profile: name or path of the robot profile, as the policy node takes it.
        executor: parameters of the executor node.
        limits: its limits_file.
        outputs: its outputs_file.
        joint_states: parameters of joint_state_names_node; None if it is not needed.

    """

    profile: str
    executor: Path
    limits: Path
    outputs: Path
    joint_states: Path | None


def bring_up_robots() -> tuple[str, ...]:
    """Names of the shipped robots that can be brought up."""
    return tuple(sorted(path.parent.name for path in robots_dir().glob(f"*/{EXECUTOR}")))


def robot_folder(robot: str) -> RobotFolder:
    """Files of a shipped robot, or of a folder with the profile of the same name beside it.

    Args:
        robot: name of a folder in config/robots, or path of another one.

    Raises:
        RobotFolderError: names what is missing and what is there.

    """
    shipped = bring_up_robots()
    folder = robots_dir() / robot if robot in shipped else Path(robot).expanduser()
    if robot not in shipped and not ("/" in robot and folder.is_dir()):
        close = difflib.get_close_matches(robot, shipped, 1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise RobotFolderError(
            f"robot:={robot} cannot be brought up; {hint}accepted: {', '.join(shipped)}, or the "
            f"path of a folder with {', '.join(_NEEDED)}"
        )
    profile = folder.parent / f"{folder.name}.yaml"
    missing = [name for name in _NEEDED if not (folder / name).is_file()]
    missing += [] if profile.is_file() else [str(profile)]
    if missing:
        raise RobotFolderError(f"robot:={robot}: {folder} lacks {', '.join(missing)}")
    states = folder / JOINT_STATES
    return RobotFolder(
        robot if robot in shipped else str(profile),
        folder / EXECUTOR,
        folder / LIMITS,
        folder / OUTPUTS,
        states if states.is_file() else None,
    )
