"""Shapes of the robot and of what stands around it, and the distances of all checked pairs."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pi05_ros.execution.kinematics.robot_model import KinematicsError, RobotModel, pinocchio
from pi05_ros.execution.space.allowed_pairs import neighbors, srdf_pairs
from pi05_ros.execution.space.link_shapes import LinkShape, coal, link_shapes, rotation_of
from pi05_ros.execution.space.space_file import FixedBox, HalfSpace, SpaceError, SpaceSpec

_POINT_M = 1e-6
"""Radius of the sphere that stands for the origin of a link without a shape."""
_NO_RANGE_M = 10.0
"""Travel of a prismatic joint whose range is not known."""


@dataclass(frozen=True)
class Piece:
    """One shape of the scene.

    Attributes:
        owner: link or obstacle that it belongs to.
        group: what allowed pairs call it.
        is_link: whether it belongs to the robot.
        joint: Pinocchio's number of the joint that moves it; 0: nothing does.
        number: in Pinocchio's geometry model.

    """

    owner: str
    group: str
    is_link: bool
    joint: int
    number: int


class Scene:
    """Distances between links, and from links to boxes and planes.

    Args:
        text: URDF.
        joints: commanded joints in the order of all positions, in rad or m; see `RobotModel`.
        spec: what is checked.

    Attributes:
        robot: kinematics of the joints.
        pairs: names of both sides of each checked pair; of several shapes of one link, each has
            a row of its own.
        reach: ``[pairs, n]``, how far (m) a pair can come nearer at most per rad or m of a joint.
        notes: what is taken for granted, for the log.

    Raises:
        SpaceError: a link, joint or name that is not there; a shape that cannot be used; a
            movable joint without a position; a package that is missing.

    """

    def __init__(self, text: str, joints: Sequence[str], spec: SpaceSpec) -> None:
        coal()
        try:
            self.robot = RobotModel(_without_shapes(text), joints)
            self.robot.rest_at(spec.other_joints or {})
        except KinematicsError as error:
            raise SpaceError(str(error)) from error
        missing = [name for name in self.robot.others if name not in (spec.other_joints or {})]
        if missing:
            raise SpaceError(
                f"{', '.join(missing)} of the URDF move but are not commanded in rad or m; say "
                "where they are in other_joints of the space file"
            )
        self._pin = pinocchio()
        self._geometry: Any = self._pin.GeometryModel()
        self.root_frame = self.robot.frames[0]
        shapes = link_shapes(text, spec)
        self._pieces = [self._add_link(shape) for shape in shapes]
        self._check_names(spec)
        self._pairs: list[tuple[Piece, Piece]] = []
        if spec.self_collision:
            self._add_self_pairs(text, spec)
        for box in spec.boxes:
            self._add_against(self._add_box(box), (), spec)
        for space in spec.half_spaces:
            self._add_against(self._add_half_space(space), space.links, spec)
        if not self._pairs and spec.tool is None:
            raise SpaceError("the space file has nothing to check: no pair of shapes, no tool")
        self._data: Any = self._geometry.createData()
        self.pairs = tuple((a.owner, b.owner) for a, b in self._pairs)
        self.reach = self._reaches()
        self.tool_id = -1
        if spec.tool is not None:
            self.tool_id = self._frame(spec.tool.frame)
        self.notes = self._notes(shapes)

    def distances(self, positions: np.ndarray) -> np.ndarray:
        """Distances ``[pairs]`` in m at joint positions ``[n]``; below 0 in contact."""
        if not self._pairs:
            return np.zeros(0)
        self._pin.computeDistances(
            self.robot.model,
            self.robot.data,
            self._geometry,
            self._data,
            self.robot.configuration(positions),
        )
        return np.array([result.min_distance for result in self._data.distanceResults])

    def where(self, pair: int) -> np.ndarray:
        """Middle ``[3]`` between the nearest points of a pair, after `distances`, in the root."""
        result = self._data.distanceResults[pair]
        middle = (result.getNearestPoint1() + result.getNearestPoint2()) / 2
        return np.asarray(np.nan_to_num(middle))

    def tool_at(self, positions: np.ndarray) -> np.ndarray:
        """Tool point ``[3]`` in the root at joint positions ``[n]``."""
        model, data = self.robot.model, self.robot.data
        self._pin.forwardKinematics(model, data, self.robot.configuration(positions))
        placed: np.ndarray = self._pin.updateFramePlacement(model, data, self.tool_id).translation
        return placed.copy()

    def _frame(self, link: str) -> int:
        try:
            return self.robot.frame_id(link)
        except KinematicsError as error:
            raise SpaceError(str(error)) from error

    def _add(self, owner: str, group: str, link: str, shape: Any, place: Any, own: bool) -> Piece:
        frame = self.robot.model.frames[self._frame(link)]
        placement = frame.placement * place
        name = f"{owner}.{self._geometry.ngeoms}"
        number = self._geometry.addGeometryObject(
            self._pin.GeometryObject(name, frame.parentJoint, placement, shape)
        )
        return Piece(owner, group, own, frame.parentJoint, number)

    def _add_link(self, shape: LinkShape) -> Piece:
        place = self._pin.SE3(shape.rotation, shape.position)
        return self._add(shape.link, shape.link, shape.link, shape.shape, place, True)

    def _add_fixed(self, name: str, group: str, frame: str, shape: Any, place: Any) -> Piece:
        piece = self._add(name, group, frame or self.root_frame, shape, place, False)
        if self._moves(piece.joint):
            raise SpaceError(f"{name} is given in {frame!r}, which moves; accepted: a fixed link")
        return piece

    def _add_box(self, box: FixedBox) -> Piece:
        place = self._pin.SE3(rotation_of(box.rotation), np.array(box.position))
        return self._add_fixed(box.name, box.name, box.frame, coal().Box(*box.size), place)

    def _add_half_space(self, space: HalfSpace) -> Piece:
        shape = coal().Halfspace(np.array(space.normal), space.offset)
        return self._add_fixed(
            space.name, space.group, space.frame, shape, self._pin.SE3.Identity()
        )

    def _check_names(self, spec: SpaceSpec) -> None:
        """Names of links and of allowed pairs have to exist; a typing error would be silent."""
        groups = {space.group for space in spec.half_spaces} | {box.name for box in spec.boxes}
        clash = groups & set(self.robot.frames)
        if clash:
            raise SpaceError(f"obstacles are named like links: {', '.join(sorted(clash))}")
        known = groups | set(self.robot.frames)
        asked = {name for pair in spec.allowed_pairs for name in pair}
        asked |= {name for space in spec.half_spaces for name in space.links}
        asked |= set(spec.link_capsule_radius or {})
        unknown = sorted(asked - known)
        if unknown:
            raise SpaceError(
                f"the space file names {', '.join(unknown)}; there are {', '.join(sorted(known))}"
            )

    def _add_self_pairs(self, text: str, spec: SpaceSpec) -> None:
        allowed = neighbors(text, {piece.owner for piece in self._pieces}) | spec.allowed_pairs
        if spec.srdf_file:
            allowed |= srdf_pairs(spec.srdf_file)
        for i, a in enumerate(self._pieces):
            for b in self._pieces[i + 1 :]:
                if a.owner != b.owner and frozenset((a.owner, b.owner)) not in allowed:
                    self._add_pair(a, b)

    def _add_against(self, obstacle: Piece, links: Sequence[str], spec: SpaceSpec) -> None:
        """Pairs of an obstacle with the links that have to keep away; empty: all that move."""
        pieces = [piece for piece in self._pieces if not links or piece.owner in links]
        for link in links:
            if link not in {piece.owner for piece in self._pieces}:
                ball = coal().Sphere(_POINT_M)
                pieces.append(self._add(link, link, link, ball, self._pin.SE3.Identity(), True))
        for piece in pieces:
            if frozenset((piece.owner, obstacle.group)) not in spec.allowed_pairs:
                self._add_pair(piece, obstacle)

    def _add_pair(self, a: Piece, b: Piece) -> None:
        if self._between(a, b):
            self._geometry.addCollisionPair(self._pin.CollisionPair(a.number, b.number))
            self._pairs.append((a, b))

    def _moves(self, joint: int) -> bool:
        return any(self._share_of(k).any() for k in self.robot.model.supports[joint] if k)

    def _between(self, a: Piece, b: Piece) -> list[int]:
        """Joints that move one piece against the other when commanded joints move."""
        supports = self.robot.model.supports
        apart = set(supports[a.joint]) ^ set(supports[b.joint])
        return [k for k in sorted(apart) if k and self._share_of(k).any()]

    def _share_of(self, joint: int) -> np.ndarray:
        row: np.ndarray = self.robot.share[self.robot.model.joints[joint].idx_v]
        return row

    def _reaches(self) -> np.ndarray:
        reach = np.zeros((len(self._pairs), len(self.robot.joints)))
        for row, (a, b) in zip(reach, self._pairs, strict=True):
            for joint in self._between(a, b):
                piece = a if joint in list(self.robot.model.supports[a.joint]) else b
                row += self._radius(joint, piece) * np.abs(self._share_of(joint))
        return reach

    def _radius(self, joint: int, piece: Piece) -> float:
        """Largest distance of a piece from a joint's origin; 1 for a joint that slides."""
        model = self.robot.model
        if model.joints[joint].shortname().startswith(("JointModelP", "JointModelPrism")):
            return 1.0
        item = self._geometry.geometryObjects[piece.number]
        item.geometry.computeLocalAABB()
        ball = float(np.linalg.norm(item.geometry.aabb_center) + item.geometry.aabb_radius)
        total = float(np.linalg.norm(item.placement.translation)) + ball
        for k in model.supports[piece.joint]:
            if k <= joint:
                continue
            total += float(np.linalg.norm(model.jointPlacements[k].translation))
            if model.joints[k].shortname().startswith("JointModelP"):
                q = model.joints[k].idx_q
                ends = np.abs([model.lowerPositionLimit[q], model.upperPositionLimit[q]])
                total += float(ends.max()) if np.isfinite(ends).all() else _NO_RANGE_M
        return total

    def _notes(self, shapes: Sequence[LinkShape]) -> tuple[str, ...]:
        kinds: dict[str, list[str]] = {}
        for shape in shapes:
            if shape.kind not in ("box", "sphere", "cylinder", "capsule"):
                kinds.setdefault(shape.kind, []).append(shape.link)
        notes = [
            f"{', '.join(dict.fromkeys(links))}: "
            + ("convex hull of the mesh" if kind == "hull" else kind)
            for kind, links in kinds.items()
        ]
        bare = [name for name in self.robot.frames if name not in {s.link for s in shapes}]
        if bare:
            notes.append(f"without collision geometry, not checked: {', '.join(bare)}")
        resting: Mapping[str, float] = dict.fromkeys(self.robot.others, 0.0)
        if resting:
            notes.append(f"taken to rest where the space file says: {', '.join(resting)}")
        return tuple(notes)


def _without_shapes(text: str) -> str:
    """URDF without shapes, which Pinocchio need not read, if it can be read at all."""
    try:
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, UnicodeError):
        return text  # the kinematics say what is wrong
    for link in root.findall("link"):
        for kind in ("collision", "visual"):
            for element in link.findall(kind):
                link.remove(element)
    return ElementTree.tostring(root, encoding="unicode")
