"""Which pairs of links are not checked: neighbors, and what an SRDF or the space file allows."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Collection
from pathlib import Path

from pi05_ros.execution.space.space_file import SpaceError
from pi05_ros.small_files import FileError, read_text

Pair = frozenset[str]


def neighbors(text: str, shaped: Collection[str]) -> set[Pair]:
    """Links with a shape and the nearest link above each that has one too."""
    root = ElementTree.fromstring(text)
    above: dict[str, str] = {}
    for joint in root.findall("joint"):
        parent, child = joint.find("parent"), joint.find("child")
        if parent is not None and child is not None:
            above[child.get("link", "")] = parent.get("link", "")
    pairs = set()
    for link in shaped:
        up, steps = above.get(link), 0
        while up is not None and up not in shaped and steps <= len(above):
            up, steps = above.get(up), steps + 1
        if up is not None and up in shaped:
            pairs.add(frozenset((link, up)))
    return pairs


def srdf_pairs(path: str) -> set[Pair]:
    """Pairs of ``disable_collisions`` of an SRDF.

    Raises:
        SpaceError: names the file and what is wrong with it.

    """
    try:
        text = read_text(Path(path))
    except FileError as error:
        raise SpaceError(f"cannot read {error}") from error
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise SpaceError(f"{path} has a document type declaration, which is refused")
    try:
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, UnicodeError) as error:
        raise SpaceError(f"{path} is not XML: {error}") from error
    return {
        frozenset((entry.get("link1", ""), entry.get("link2", "")))
        for entry in root.iter("disable_collisions")
    }
