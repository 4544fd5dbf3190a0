"""Shapes of the links of a URDF for collisions: primitives, hulls of meshes, or capsules."""

from __future__ import annotations

import math
import os
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote, urlparse

import numpy as np

from pi05_ros.execution.space.space_file import SpaceError, SpaceSpec

MAX_MESH_BYTES = 50_000_000


def coal() -> ModuleType:
    """The library, or SpaceError with the command that installs it."""
    try:
        import coal as library
    except ImportError as error:
        raise SpaceError(
            "collisions need coal, which is not installed: pip install 'pi05_ros[collisions]' or "
            f"pip install coal pin ({error})"
        ) from error
    module: ModuleType = library
    return module


@dataclass(frozen=True)
class LinkShape:
    """One shape of a link.

    Attributes:
        link: its name.
        shape: of coal.
        position: of its center in the link's axes, ``[3]`` in m.
        rotation: ``[3, 3]``.
        kind: "box", "sphere", "cylinder", "capsule", "hull", or "capsule instead of a mesh".

    """

    link: str
    shape: Any
    position: np.ndarray
    rotation: np.ndarray
    kind: str


def rotation_of(rpy: tuple[float, float, float]) -> np.ndarray:
    """Matrix ``[3, 3]`` of roll, pitch, yaw as in a URDF."""
    (cr, cp, cy), (sr, sp, sy) = np.cos(rpy), np.sin(rpy)
    return np.array(
        [
            [cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr],
            [sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr],
            [-sp, cp * sr, cp * cr],
        ]
    )


def link_shapes(text: str, spec: SpaceSpec) -> list[LinkShape]:
    """Shapes of the ``collision`` elements of all links.

    Meshes become their convex hulls. One that is not here is refused, or, as the spec says, the
    whole link becomes capsules from its origin to those of the joints on it, or a sphere at its
    end. Links without ``collision`` have no shape.

    Raises:
        SpaceError: names the link and what is wrong with its shape.

    """
    root = ElementTree.fromstring(text)  # was checked when the joints were read
    shapes: list[LinkShape] = []
    for link in root.findall("link"):
        name = link.get("name", "")
        try:
            shapes += [_shape(name, element) for element in link.findall("collision")]
        except _MeshMissingError as error:
            shapes = [shape for shape in shapes if shape.link != name]
            shapes += _capsules(root, name, spec, str(error))
    return shapes


class _MeshMissingError(Exception):
    """A mesh file that is not on this machine."""


def _shape(link: str, element: ElementTree.Element) -> LinkShape:
    where = f"collision geometry of link {link!r} of the URDF"
    position, rotation = _origin(element.find("origin"), where)
    geometry = element.find("geometry")
    body = None if geometry is None or not len(geometry) else geometry[0]
    if body is None:
        raise SpaceError(f"{where} is empty")
    library = coal()
    if body.tag == "box":
        shape = library.Box(*_numbers(body, "size", 3, where, above_zero=True))
    elif body.tag == "sphere":
        shape = library.Sphere(*_numbers(body, "radius", 1, where, above_zero=True))
    elif body.tag in ("cylinder", "capsule"):
        (radius,) = _numbers(body, "radius", 1, where, above_zero=True)
        (length,) = _numbers(body, "length", 1, where, above_zero=True)
        kind = library.Cylinder if body.tag == "cylinder" else library.Capsule
        shape = kind(radius, length)
    elif body.tag == "mesh":
        return LinkShape(link, _hull(body, where), position, rotation, "hull")
    else:
        raise SpaceError(
            f"{where} is a {body.tag:.30}; accepted: box, sphere, cylinder, capsule, mesh"
        )
    return LinkShape(link, shape, position, rotation, body.tag)


def _origin(element: ElementTree.Element | None, where: str) -> tuple[np.ndarray, np.ndarray]:
    if element is None:
        return np.zeros(3), np.eye(3)
    x, y, z = _numbers(element, "xyz", 3, where, default="0 0 0")
    roll, pitch, yaw = _numbers(element, "rpy", 3, where, default="0 0 0")
    return np.array([x, y, z]), rotation_of((roll, pitch, yaw))


def _numbers(
    element: ElementTree.Element,
    key: str,
    count: int,
    where: str,
    default: str = "",
    above_zero: bool = False,
) -> list[float]:
    text = element.get(key, default)
    try:
        values = [float(word) for word in text.split()]
    except ValueError:
        values = []
    if len(values) != count or not all(
        math.isfinite(v) and abs(v) < 1e6 and (v > 0 or not above_zero) for v in values
    ):
        kind = "numbers above 0" if above_zero else "numbers"
        raise SpaceError(f"{where}: {key} is {text[:50]!r}; accepted: {count} {kind}")
    return values


def _hull(mesh: ElementTree.Element, where: str) -> Any:
    """Convex hull of a mesh file."""
    uri = mesh.get("filename", "")
    path = _mesh_path(uri)
    if path is None:
        raise _MeshMissingError(f"{where}: the mesh {uri[:200]!r} is not here")
    if path.stat().st_size > MAX_MESH_BYTES:
        raise SpaceError(f"{where}: {path} has more than {MAX_MESH_BYTES} bytes")
    scale = np.array(_numbers(mesh, "scale", 3, where, default="1 1 1"))
    library = coal()
    try:
        loaded = library.MeshLoader(library.NODE_TYPE.BV_OBBRSS).load(str(path), scale)
        loaded.buildConvexHull(True, "Qt")
    except Exception as error:  # the library raises several types
        lines = str(error).splitlines()
        raise SpaceError(f"{where}: {path} cannot be used: {lines[-1][:200]}") from error
    if loaded.convex is None:
        raise SpaceError(f"{where}: {path} has no convex hull")
    return loaded.convex


def _mesh_path(uri: str) -> Path | None:
    """File of a mesh, looked up for package:// in the prefixes of ROS; None if it is not here."""
    parts = urlparse(uri)
    if parts.scheme == "file":
        candidates = [Path(unquote(parts.path))]
    elif parts.scheme == "package":
        inside = unquote(parts.path).lstrip("/")
        prefixes = os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep)
        candidates = [Path(p) / "share" / parts.netloc / inside for p in prefixes if p]
    elif parts.scheme:
        candidates = []
    else:
        candidates = [Path(uri)] if Path(uri).is_absolute() else []
    return next((path for path in candidates if path.is_file()), None)


def _capsules(
    root: ElementTree.Element, link: str, spec: SpaceSpec, problem: str
) -> list[LinkShape]:
    """Capsules from a link's origin to those of the joints on it; a sphere if there is none."""
    if spec.missing_meshes != "capsules":
        raise SpaceError(
            f"{problem}; give the URDF with its meshes, or set missing_meshes: capsules in the "
            "space file"
        )
    radius = (spec.link_capsule_radius or {}).get(link, spec.capsule_radius)
    if radius is None:
        raise SpaceError(
            f"{problem}; a capsule instead needs capsule_radius_m or link_capsule_radius_m.{link} "
            "in the space file"
        )
    ends = []
    for joint in root.findall("joint"):
        parent = joint.find("parent")
        if parent is not None and parent.get("link") == link:
            ends.append(_origin(joint.find("origin"), f"joint {joint.get('name')!r}")[0])
    library = coal()
    kind = "capsule instead of a mesh"
    shapes = [
        LinkShape(link, library.Capsule(radius, float(np.linalg.norm(end))), end / 2, turn, kind)
        for end in ends
        if (turn := _along(end)) is not None
    ]
    sphere = LinkShape(link, library.Sphere(radius), np.zeros(3), np.eye(3), kind)
    return shapes or [sphere]


def _along(axis: np.ndarray) -> np.ndarray | None:
    """Rotation ``[3, 3]`` whose z axis points along a vector; None if that has no length."""
    length = float(np.linalg.norm(axis))
    if length < 1e-9:
        return None
    z = axis / length
    other = np.array([1.0, 0.0, 0.0]) if abs(z[0]) < 0.9 else np.array([0.0, 1.0, 0.0])
    x = np.cross(other, z)
    x /= np.linalg.norm(x)
    return np.stack([x, np.cross(z, x), z], axis=1)
