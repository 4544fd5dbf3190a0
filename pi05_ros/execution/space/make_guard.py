"""From a space file and a robot description to what watches the space."""

from __future__ import annotations

from pathlib import Path

from pi05_ros.execution.limit_sources.joint_limits import JointLimits, LimitsError
from pi05_ros.execution.limit_sources.urdf_limits import read_urdf
from pi05_ros.execution.space.scene import Scene
from pi05_ros.execution.space.space_file import SpaceError, read_space
from pi05_ros.execution.space.space_guard import SpaceGuard

_SI = ("", "radian", "metre")


def make_guard(
    space_file: Path, description: str, limits: JointLimits, period_s: float
) -> tuple[SpaceGuard, tuple[str, ...]]:
    """What watches the space of commanded joints, and remarks for the log.

    Joints that the URDF does not have, or whose positions are in no SI unit (grippers that count
    from open to closed), move no shape; the space file has to say where the latter are.

    Args:
        space_file: see `read_space`.
        description: text of the URDF.
        limits: of the commanded joints.
        period_s: control period.

    Raises:
        SpaceError: see `read_space` and `Scene`.

    """
    spec = read_space(space_file)
    try:
        known = read_urdf(description).limits.names
    except LimitsError as error:
        raise SpaceError(f"space_file needs the robot description: {error}") from error
    columns = [
        i
        for i, (name, unit) in enumerate(zip(limits.names, limits.units, strict=True))
        if name in known and unit in _SI
    ]
    if not columns:
        raise SpaceError(
            f"none of the commanded joints ({', '.join(limits.names)}) is in the URDF in rad or m"
        )
    joints = [limits.names[i] for i in columns]
    scene = Scene(description, joints, spec)
    absent = [name for name in limits.names if name not in known]
    notes = scene.notes
    if absent:
        notes += (f"not in the robot description, moves no shape: {', '.join(absent)}",)
    return SpaceGuard(scene, spec, columns, period_s), notes
