"""Made-up robot descriptions, and their forward kinematics written down a second time."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import numpy as np
from scipy.spatial.transform import Rotation


def chain_urdf(
    rng: np.random.Generator,
    kinds: list[str],
    *,
    prefix: str = "",
    root: str = "base",
    mimic: dict[int, tuple[int, float, float]] | None = None,
    shuffled: bool = False,
) -> str:
    """Joint and link elements of one chain: joints ``<prefix>j0..``, links ``<prefix>link0..``.

    Args:
        kinds: type of each joint, the first at the root.
        mimic: joint -> leader, multiplier, offset.
        shuffled: the elements come in another order than the chain's.

    """
    parts, parent = [], root
    for i, kind in enumerate(kinds):
        axis = rng.normal(size=3)
        axis = np.eye(3)[rng.integers(3)] if rng.random() < 0.5 else axis / np.linalg.norm(axis)
        xyz = rng.uniform([-0.05, -0.05, 0.15], [0.05, 0.05, 0.25])
        rpy = rng.uniform(-1.5, 1.5, 3)
        text = (
            f'<joint name="{prefix}j{i}" type="{kind}"><parent link="{parent}"/>'
            f'<child link="{prefix}link{i}"/>'
            f'<origin xyz="{_row(xyz)}" rpy="{_row(rpy)}"/><axis xyz="{_row(axis)}"/>'
        )
        if kind in ("revolute", "continuous"):
            text += '<limit lower="-2.9" upper="2.8" velocity="2.0" effort="10"/>'
        elif kind == "prismatic":
            text += '<limit lower="-0.3" upper="0.4" velocity="0.5" effort="10"/>'
        if mimic and i in mimic:
            leader, factor, offset = mimic[i]
            text += f'<mimic joint="{prefix}j{leader}" multiplier="{factor}" offset="{offset}"/>'
        parts.append(text + f'</joint><link name="{prefix}link{i}"/>')
        parent = f"{prefix}link{i}"
    if shuffled:
        rng.shuffle(parts)
    return "".join(parts)


def robot_urdf(*chains: str, root: str = "base") -> str:
    """A whole description of chains that begin at one root."""
    return f'<robot name="made_up"><link name="{root}"/>{"".join(chains)}</robot>'


def reference_pose(text: str, positions: dict[str, float], link: str) -> np.ndarray:
    """Transform ``[4, 4]`` of a link, seen from the root; joints without a position are at 0."""
    joints = {
        j.find("child").get("link"): j for j in ElementTree.fromstring(text).findall("joint")
    }
    by_name = {j.get("name"): j for j in joints.values()}
    found = np.eye(4)
    while link in joints:
        joint = joints[link]
        found = _transform(joint, _value(joint, by_name, positions)) @ found
        link = joint.find("parent").get("link")
    return found


def _value(joint, by_name, positions: dict[str, float]) -> float:
    mimic = joint.find("mimic")
    if mimic is None:
        return positions.get(joint.get("name"), 0.0)
    leader = _value(by_name[mimic.get("joint")], by_name, positions)
    return float(mimic.get("multiplier", 1)) * leader + float(mimic.get("offset", 0))


def _transform(joint, value: float) -> np.ndarray:
    origin, kind = joint.find("origin"), joint.get("type")
    fixed = np.eye(4)
    fixed[:3, :3] = Rotation.from_euler("xyz", _numbers(origin.get("rpy"))).as_matrix()
    fixed[:3, 3] = _numbers(origin.get("xyz"))
    moved = np.eye(4)
    axis = np.array(_numbers(joint.find("axis").get("xyz")))
    axis /= np.linalg.norm(axis)
    if kind == "prismatic":
        moved[:3, 3] = axis * value
    elif kind != "fixed":
        moved[:3, :3] = Rotation.from_rotvec(axis * value).as_matrix()
    return fixed @ moved


def _numbers(text: str) -> list[float]:
    return [float(word) for word in text.split()]


def _row(values: np.ndarray) -> str:
    return " ".join(repr(float(v)) for v in values)
