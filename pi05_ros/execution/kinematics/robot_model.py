"""A robot description with forward kinematics and Jacobians, by Pinocchio (package `pin`).

Joint positions are in the order in which the joints are named, whatever the order in the URDF.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from pi05_ros.errors import Pi05Error
from pi05_ros.execution.limit_sources.joint_limits import ENDLESS_RAD, LimitsError
from pi05_ros.execution.limit_sources.urdf_limits import UrdfJoints, read_urdf


class KinematicsError(Pi05Error, ValueError):
    """Kinematics that cannot be computed: no library, a wrong URDF, an unknown joint or frame."""


def pinocchio() -> ModuleType:
    """The library, or KinematicsError with the command that installs it."""
    try:
        import pinocchio as library
    except ImportError as error:
        raise KinematicsError(
            "poses and collisions need Pinocchio, which is not installed: "
            f"pip install 'pi05_ros[kinematics]' or pip install pin ({error})"
        ) from error
    if not hasattr(library, "buildModelFromXML"):
        raise KinematicsError(
            "the module pinocchio is another package of that name: pip uninstall pinocchio, then "
            "pip install pin"
        )
    module: ModuleType = library
    return module


@dataclass(frozen=True)
class Pose:
    """Place and orientation of a frame, seen from another.

    Attributes:
        position: ``[3]`` in m.
        rotation: matrix ``[3, 3]`` whose columns are the frame's axes.

    """

    position: np.ndarray
    rotation: np.ndarray

    def __matmul__(self, other: Pose) -> Pose:
        """This pose, then the other one as seen from it."""
        return Pose(self.position + self.rotation @ other.position, self.rotation @ other.rotation)

    def inverse(self) -> Pose:
        """The other frame seen from this one."""
        return Pose(-self.rotation.T @ self.position, self.rotation.T)


class RobotModel:
    """Kinematics of named joints; not for use from several threads at once.

    Mimic joints follow their leader. Movable joints that are not named (`others`) rest at 0, or
    at the end of their range that is nearest to 0.

    Args:
        text: the URDF.
        joints: the order of all arrays; empty: all that follow no other, in the URDF's order.

    Attributes:
        joints: names, the order of all arrays.
        others: movable joints that are neither named nor follow a named one.
        frames: names of all links.
        lower, upper: position limits ``[n]``, rad or m; of continuous joints -+`ENDLESS_RAD`, NaN
            where the URDF's are malformed.
        continuous: per joint whether it turns without end.
        urdf: the text with the entries that its parser asks for and kinematics does not need.
        model: Pinocchio's Model, for what is built upon it, such as collision geometry.
        data: Pinocchio's Data with the result of the last computation.

    Raises:
        KinematicsError: Pinocchio is missing, the URDF is malformed or has joints that are not
            revolute, continuous, prismatic or fixed, or a joint is not in it or follows another.

    """

    def __init__(self, text: str, joints: Sequence[str] = ()) -> None:
        self._pin = pinocchio()
        try:
            urdf = read_urdf(text)
        except LimitsError as error:
            raise KinematicsError(str(error)) from error
        self.joints = tuple(joints) or urdf.commandable
        if len(set(self.joints)) != len(self.joints):
            raise KinematicsError(f"joint names repeat: {', '.join(self.joints)}")
        for name in self.joints:
            if name in urdf.mimic:
                raise KinematicsError(f"joint {name!r} mimics {urdf.mimic[name]!r}; name that one")
            if name not in urdf.limits.names:
                raise KinematicsError(
                    f"the URDF has no movable joint {name!r}; it has {', '.join(urdf.commandable)}"
                )
        self.urdf = _completed(text)
        self.model: Any = self._build(self.urdf)
        self.data: Any = self.model.createData()
        self.frames = tuple(
            frame.name for frame in self.model.frames if frame.type == self._pin.FrameType.BODY
        )
        self._frame_ids = {
            frame.name: k
            for k, frame in enumerate(self.model.frames)
            if frame.type == self._pin.FrameType.BODY
        }
        rows = [urdf.limits.names.index(name) for name in self.joints]
        self.lower, self.upper = urdf.limits.lower[rows], urdf.limits.upper[rows]
        self.continuous = tuple(urdf.limits.continuous[row] for row in rows)
        self.others: tuple[str, ...] = ()
        self._prepare(urdf)

    def _build(self, text: str) -> Any:
        try:
            model = self._pin.buildModelFromXML(text)
        except Exception as error:  # the library raises several types for one and the same
            raise KinematicsError(f"the URDF cannot be read: {str(error)[:300]}") from error
        for k in range(1, model.njoints):
            if model.joints[k].nv != 1:
                raise KinematicsError(
                    f"joint {model.names[k]!r} of the URDF has {model.joints[k].nv} axes; "
                    "accepted: revolute, continuous, prismatic and fixed joints"
                )
        return model

    def _prepare(self, urdf: UrdfJoints) -> None:
        """How the positions of named joints become those of all: ``share @ positions + rest``."""
        n = self.model.nv
        self._share, self._rest = np.zeros((n, len(self.joints))), np.zeros(n)
        self._plain: tuple[list[int], list[int]] = ([], [])  # rows of velocity, of configuration
        self._turning: tuple[list[int], list[int]] = ([], [])
        others = []
        self._leaders: dict[str, str] = {}
        for k in range(1, self.model.njoints):
            name, joint = self.model.names[k], self.model.joints[k]
            leader, factor, offset = _leader(name, urdf)
            self._leaders[name] = leader
            if leader in self.joints:
                self._share[joint.idx_v, self.joints.index(leader)] = factor
                self._rest[joint.idx_v] = offset
            else:
                row = urdf.limits.names.index(leader)
                low, high = np.nan_to_num(
                    [urdf.limits.lower[row], urdf.limits.upper[row]], nan=0.0
                )
                self._rest[joint.idx_v] = factor * min(max(0.0, low), high) + offset
                if name == leader:
                    others.append(name)
            kind = self._turning if joint.nq == 2 else self._plain
            kind[0].append(joint.idx_v)
            kind[1].append(joint.idx_q)
        self.others = tuple(others)
        self._support_of: dict[int, list[int]] = {}
        self._neutral = self._pin.neutral(self.model)

    def configuration(self, positions: np.ndarray) -> np.ndarray:
        """Pinocchio's configuration ``[nq]`` for joint positions ``[n]``."""
        angles = self._share @ positions + self._rest
        q: np.ndarray = self._neutral.copy()
        q[self._plain[1]] = angles[self._plain[0]]
        if self._turning[0]:
            turning, first = angles[self._turning[0]], np.array(self._turning[1])
            q[first], q[first + 1] = np.cos(turning), np.sin(turning)
        return q

    def rest_at(self, positions: Mapping[str, float]) -> None:
        """Let joints that are not named rest elsewhere: rad or m by name, each one of `others`."""
        for name, position in positions.items():
            if name not in self.others:
                raise KinematicsError(
                    f"{name!r:.80} is no joint that rests; those are {', '.join(self.others)}"
                )
            joint = self.model.joints[self.model.getJointId(name)]
            self._rest[joint.idx_v] = position

    @property
    def share(self) -> np.ndarray:
        """How much each velocity of Pinocchio has of each joint's, ``[nv, n]``."""
        return self._share.copy()

    def frame_id(self, frame: str) -> int:
        """Pinocchio's number of a link; KinematicsError names those there are."""
        if frame not in self._frame_ids:
            raise KinematicsError(
                f"the URDF has no link {frame!r:.80}; it has {', '.join(self.frames)}"
            )
        return self._frame_ids[frame]

    def pose(self, positions: np.ndarray, frame: str, base: str = "") -> Pose:
        """Pose of a link at joint positions ``[n]``, seen from another; empty: the URDF's root."""
        self.update(positions)
        return self.placed(frame, base)

    def update(self, positions: np.ndarray) -> None:
        """Compute for joint positions ``[n]`` what `placed` and `jacobian_of` give then."""
        q = self.configuration(np.asarray(positions, np.float64))
        self._pin.computeJointJacobians(self.model, self.data, q)
        self._pin.updateFramePlacements(self.model, self.data)

    def placed(self, frame: str, base: str = "") -> Pose:
        """Pose of a link after `update`."""
        at = self.data.oMf[self.frame_id(frame)]
        if not base:
            return Pose(at.translation.copy(), at.rotation.copy())
        at = self.data.oMf[self.frame_id(base)].actInv(at)
        return Pose(at.translation.copy(), at.rotation.copy())

    def jacobian_of(self, frame: str, base: str = "") -> np.ndarray:
        """Jacobian ``[6, n]`` of a link's origin after `update`.

        Rows are linear (m/s) and angular velocity (rad/s) relative to the base, in its axes.
        """
        number = self.frame_id(frame)
        axes = self._pin.ReferenceFrame.LOCAL_WORLD_ALIGNED
        full = self._raw_jacobian(number, axes)
        if base:
            root = self.frame_id(base)
            turn = self.data.oMf[root].rotation.T
            if self._supports(root):
                own = self._raw_jacobian(root, axes)
                reach = self.data.oMf[number].translation - self.data.oMf[root].translation
                full = full - own
                full[:3] -= np.cross(own[3:].T, reach).T
            full = np.vstack([turn @ full[:3], turn @ full[3:]])
        return np.asarray(full @ self._share)

    def _raw_jacobian(self, frame: int, axes: Any) -> np.ndarray:
        found = self._pin.getFrameJacobian(self.model, self.data, frame, axes)
        return np.asarray(found).reshape(6, self.model.nv)  # of one joint it is a vector

    def log(self, rotation: np.ndarray) -> np.ndarray:
        """Rotation vector ``[3]`` of a matrix."""
        return np.asarray(self._pin.log3(rotation))

    def movers(self, frame: str, base: str = "") -> tuple[str, ...]:
        """Movable joints between two links, mimic joints as their own names, from the base on."""
        ends = [self._supports(self.frame_id(frame))]
        ends.append(self._supports(self.frame_id(base)) if base else [])
        apart = set(ends[0]) ^ set(ends[1])
        return tuple(self.model.names[k] for k in sorted(apart))

    def drivers(self, frame: str, base: str = "") -> tuple[str, ...]:
        """Joints that move a link as seen from another: leaders instead of mimic joints."""
        found = []
        for name in self.movers(frame, base):
            leader = self._leaders[name]
            if leader not in found:
                found.append(leader)
        return tuple(found)

    def _supports(self, frame: int) -> list[int]:
        if frame not in self._support_of:
            parent = self.model.frames[frame].parentJoint
            self._support_of[frame] = [k for k in self.model.supports[parent] if k > 0]
        return self._support_of[frame]


def _completed(text: str) -> str:
    """A checked URDF with the entries without which its parser refuses a joint."""
    root = ElementTree.fromstring(text)
    for joint in root.findall("joint"):
        if joint.get("type") not in ("revolute", "prismatic", "continuous"):
            continue
        limit = joint.find("limit")
        if limit is None:
            limit = ElementTree.SubElement(joint, "limit")
        for key in ("effort", "velocity"):
            if key not in limit.attrib:
                limit.set(key, "0")
    return ElementTree.tostring(root, encoding="unicode")


def _leader(name: str, urdf: UrdfJoints) -> tuple[str, float, float]:
    """The joint that a joint follows, itself or another, with factor and offset."""
    factor, offset, seen = 1.0, 0.0, {name}
    while name in urdf.mimic:
        if name not in urdf.mimic_map:
            raise KinematicsError(f"joint {name!r} of the URDF: {urdf.problems[name]}")
        multiplier, shift = urdf.mimic_map[name]
        offset += factor * shift
        factor *= multiplier
        name = urdf.mimic[name]
        if name in seen or name not in urdf.limits.names:
            raise KinematicsError(
                f"a mimic joint of the URDF follows {name!r}, which follows it or does not move"
            )
        seen.add(name)
    return name, factor, offset


__all__ = ["ENDLESS_RAD", "KinematicsError", "Pose", "RobotModel", "pinocchio"]
