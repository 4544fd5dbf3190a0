"""The file that says what the arm must not touch or leave: strict YAML, units in the names."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pi05_ros.errors import Pi05Error
from pi05_ros.small_files import FileError
from pi05_ros.strict_yaml import read_yaml

DEFAULT_MARGIN_M, DEFAULT_STOP_M = 0.1, 0.02
LEAST_STOP_M = 0.002
MESHES = ("refuse", "capsules")
Vector = tuple[float, float, float]
_TOP = (
    "margin_m", "stop_m", "tool", "workspaces", "planes", "boxes", "self_collision",
    "allowed_pairs", "srdf_file", "missing_meshes", "capsule_radius_m", "link_capsule_radius_m",
    "other_joints",
)  # fmt: skip


class SpaceError(Pi05Error, ValueError):
    """A space that cannot be watched: a wrong file, no package, an unknown link or shape."""


@dataclass(frozen=True)
class HalfSpace:
    """Where something has to stay: ``normal . x >= offset``.

    Attributes:
        name: what the status calls it.
        group: what allowed pairs call it: the name of the plane or of the whole workspace.
        frame: link in whose axes it is given; empty: the root of the URDF.
        normal: unit vector into the allowed side.
        offset: in m.
        links: what has to stay there: the shape of a link, or its origin if it has none; empty:
            everything that moves.

    """

    name: str
    group: str
    frame: str
    normal: Vector
    offset: float
    links: tuple[str, ...]


@dataclass(frozen=True)
class FixedBox:
    """A box that stands still.

    Attributes:
        name: what the status calls it.
        frame: link in whose axes it is given; empty: the root of the URDF.
        size, position: in m; the position is that of the center.
        rotation: roll, pitch, yaw in rad as in a URDF.

    """

    name: str
    frame: str
    size: Vector
    position: Vector
    rotation: Vector


@dataclass(frozen=True)
class ToolLimit:
    """Fastest speed of a link's origin in m/s."""

    frame: str
    max_speed: float


@dataclass(frozen=True)
class SpaceSpec:
    """Content of a space file.

    Attributes:
        margin: nearer than this (m) the arm slows down.
        stop: it is never nearer than this (m), unless it was so at the start.
        tool: speed limit of the tool point.
        half_spaces: planes, and the sides of workspace boxes.
        boxes: what stands there.
        self_collision: whether links are checked against each other.
        allowed_pairs: two names of links or obstacles each, which are not checked.
        srdf_file: MoveIt's SRDF, whose disabled pairs are not checked either; empty: none.
        missing_meshes: "refuse", or "capsules" along the link instead.
        capsule_radius: of such capsules in m; None: none is set.
        link_capsule_radius: the same for single links.
        other_joints: positions (rad or m) of movable joints that are not commanded.

    """

    margin: float = DEFAULT_MARGIN_M
    stop: float = DEFAULT_STOP_M
    tool: ToolLimit | None = None
    half_spaces: tuple[HalfSpace, ...] = ()
    boxes: tuple[FixedBox, ...] = ()
    self_collision: bool = True
    allowed_pairs: frozenset[frozenset[str]] = frozenset()
    srdf_file: str = ""
    missing_meshes: str = "refuse"
    capsule_radius: float | None = None
    link_capsule_radius: Mapping[str, float] | None = None
    other_joints: Mapping[str, float] | None = None


def read_space(path: Path) -> SpaceSpec:
    """Read a space file, see docs/space.md.

    Raises:
        SpaceError: names the file, the entry and what is accepted.

    """
    try:
        data = read_yaml(path)
    except FileError as error:
        raise SpaceError(f"cannot read {error}") from error
    return space_from_mapping(data, str(path))


def space_from_mapping(data: Any, source: str = "space") -> SpaceSpec:
    """Read ``{space: {...}}``; raises as `read_space`. SRDF files are relative to the file."""
    body = data.get("space") if isinstance(data, Mapping) and len(data) == 1 else None
    if not isinstance(body, Mapping):
        raise SpaceError(f"{source}: needs one section space")
    top = _SpaceEntry(body, f"{source}: space", _TOP)
    margin = top.number("margin_m", DEFAULT_MARGIN_M, low=LEAST_STOP_M)
    stop = top.number("stop_m", DEFAULT_STOP_M, low=LEAST_STOP_M)
    if margin <= stop:
        raise SpaceError(
            f"{top.where}.margin_m is {margin:g}; accepted: more than stop_m {stop:g}"
        )
    tool = None
    if "tool" in body:
        entry = _SpaceEntry(body["tool"], f"{top.where}.tool", ("frame", "max_speed_m_per_s"))
        tool = ToolLimit(entry.word("frame"), entry.number("max_speed_m_per_s", low=1e-4))
    half_spaces = [s for entry in top.entries("workspaces") for s in _workspace(*entry)]
    half_spaces += [_plane(*entry) for entry in top.entries("planes")]
    boxes = [_box(*entry) for entry in top.entries("boxes")]
    names = [box.name for box in boxes] + [space.name for space in half_spaces]
    names += {space.group for space in half_spaces} - set(names)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise SpaceError(f"{top.where}: names repeat: {', '.join(twice)}")
    radii = top.numbers("link_capsule_radius_m", low=1e-4)
    srdf = str(body.get("srdf_file", ""))
    return SpaceSpec(
        margin=margin,
        stop=stop,
        tool=tool,
        half_spaces=tuple(half_spaces),
        boxes=tuple(boxes),
        self_collision=top.flag("self_collision", True),
        allowed_pairs=frozenset(_pairs(body.get("allowed_pairs", []), top.where)),
        srdf_file=str(Path(source).parent / Path(srdf).expanduser()) if srdf else "",
        missing_meshes=top.word("missing_meshes", MESHES[0], MESHES),
        capsule_radius=(
            top.number("capsule_radius_m", low=1e-4) if "capsule_radius_m" in body else None
        ),
        link_capsule_radius=radii,
        other_joints=top.numbers("other_joints", low=-1e6),
    )


def _plane(entry: Any, where: str) -> HalfSpace:
    e = _SpaceEntry(entry, where, ("name", "frame", "normal", "offset_m", "links"))
    normal = e.vector("normal")
    length = math.hypot(*normal)
    if length < 1e-6:
        raise SpaceError(f"{where}.normal is {normal}; accepted: a vector that is not 0")
    x, y, z = (value / length for value in normal)
    name, offset = e.word("name"), e.number("offset_m") / length
    return HalfSpace(name, name, e.word("frame", ""), (x, y, z), offset, e.links())


def _workspace(entry: Any, where: str) -> Iterable[HalfSpace]:
    e = _SpaceEntry(entry, where, ("name", "frame", "min_m", "max_m", "links"))
    low, high = e.vector("min_m"), e.vector("max_m")
    name, frame, links = e.word("name"), e.word("frame", ""), e.links()
    for i, axis in enumerate("xyz"):
        if low[i] >= high[i]:
            raise SpaceError(f"{where}: min_m {axis} {low[i]:g} is not below max_m {high[i]:g}")
        unit = [0.0, 0.0, 0.0]
        for word, sign, edge in (("min", 1.0, low[i]), ("max", -1.0, high[i])):
            unit[i] = sign
            normal = (unit[0], unit[1], unit[2])
            side = f"{name} ({word} {axis})"
            yield HalfSpace(side, name, frame, normal, sign * edge, links)


def _box(entry: Any, where: str) -> FixedBox:
    e = _SpaceEntry(entry, where, ("name", "frame", "size_m", "position_m", "rotation_rpy_rad"))
    size = e.vector("size_m")
    if min(size) <= 0:
        raise SpaceError(f"{where}.size_m is {list(size)}; accepted: three numbers above 0")
    turn = e.vector("rotation_rpy_rad", (0.0, 0.0, 0.0))
    return FixedBox(e.word("name"), e.word("frame", ""), size, e.vector("position_m"), turn)


def _pairs(value: Any, where: str) -> Iterable[frozenset[str]]:
    good = isinstance(value, list) and all(
        isinstance(pair, list)
        and len(pair) == 2
        and all(isinstance(name, str) for name in pair)
        and pair[0] != pair[1]
        for pair in value
    )
    if not good:
        raise SpaceError(
            f"{where}.allowed_pairs is {value!s:.80}; accepted: a list of pairs of different names"
        )
    return [frozenset(pair) for pair in value]


class _SpaceEntry:
    """A mapping whose values are asked for by kind."""

    def __init__(self, value: Any, where: str, keys: tuple[str, ...]) -> None:
        if not isinstance(value, Mapping):
            raise SpaceError(f"{where} is not a mapping")
        for key in value:
            if key not in keys:
                close = get_close_matches(str(key), keys, 1)
                hint = f"did you mean {close[0]}?" if close else f"accepted: {', '.join(keys)}"
                raise SpaceError(f"{where}.{key!s:.50} is not known; {hint}")
        self._value, self.where = value, where

    def number(
        self, key: str, default: float | None = None, low: float = -1e6, high: float = 1e6
    ) -> float:
        """A finite number within bounds."""
        return _number(self._get(key, default), f"{self.where}.{key}", low, high)

    def numbers(self, key: str, low: float) -> dict[str, float]:
        """Numbers by name."""
        found = self._value.get(key, {})
        if not isinstance(found, Mapping) or not all(isinstance(name, str) for name in found):
            raise SpaceError(f"{self.where}.{key} is {found!s:.80}; accepted: numbers by name")
        return {n: _number(v, f"{self.where}.{key}.{n}", low, 1e6) for n, v in found.items()}

    def vector(self, key: str, default: Vector | None = None) -> Vector:
        """Three finite numbers."""
        found = self._get(key, default)
        if not isinstance(found, list | tuple) or len(found) != 3:
            raise SpaceError(f"{self.where}.{key} is {found!s:.80}; accepted: three numbers")
        x, y, z = (_number(v, f"{self.where}.{key}", -1e6, 1e6) for v in found)
        return x, y, z

    def word(self, key: str, default: str | None = None, among: tuple[str, ...] = ()) -> str:
        """Text that is not empty, unless the default is."""
        found = self._get(key, default)
        if not isinstance(found, str) or (not found and default != ""):
            raise SpaceError(f"{self.where}.{key} is {found!s:.50}; accepted: a name")
        if among and found not in among:
            raise SpaceError(f"{self.where}.{key} is {found!s:.50}; accepted: {', '.join(among)}")
        return found

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        found = self._value.get(key, default)
        if not isinstance(found, bool):
            raise SpaceError(f"{self.where}.{key} is {found!s:.50}; accepted: true or false")
        return found

    def links(self) -> tuple[str, ...]:
        """The list ``links``, empty if there is none."""
        found = self._value.get("links", [])
        if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
            raise SpaceError(f"{self.where}.links is {found!s:.80}; accepted: a list of links")
        return tuple(found)

    def entries(self, key: str) -> Iterable[tuple[Any, str]]:
        """Entries of a list, each with where it is."""
        found = self._value.get(key, [])
        if not isinstance(found, list):
            raise SpaceError(f"{self.where}.{key} is {found!s:.80}; accepted: a list")
        return [(entry, f"{self.where}.{key}[{i}]") for i, entry in enumerate(found)]

    def _get(self, key: str, default: Any) -> Any:
        if key in self._value:
            return self._value[key]
        if default is None:
            raise SpaceError(f"{self.where}.{key} is missing")
        return default


def _number(value: Any, where: str, low: float, high: float) -> float:
    good = isinstance(value, int | float) and not isinstance(value, bool)
    if not good or not low <= value <= high:
        raise SpaceError(f"{where} is {value!s:.50}; accepted: a number from {low:g} to {high:g}")
    return float(value)
