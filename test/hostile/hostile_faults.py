"""Generators of faults: bytes that are damaged, values in the wrong place, files that are none.

Everything is a function of the generator it is given, so that a case can be made again by seed.
"""

from __future__ import annotations

import copy
import json
import os
import random
from pathlib import Path
from typing import Any

NUMBERS: tuple[Any, ...] = (
    0, -1, 1, 2**31, 2**63, 2**64, -(2**63) - 1, 10**400, 1e-300, 1e308, -1e308, 0.1, -0.0,
    float("nan"), float("inf"), float("-inf"),
)  # fmt: skip
WORDS = (
    "", " ", "\x00", "joint1", "nan", "../../etc/passwd", "a" * 5000, "é", "\ud800", "日本",
    "true", "1e999", "*", "&a", "${HOME}", "%s%n", "\u202e", "\n\n", "{", "null",
)  # fmt: skip


def deep(levels: int) -> Any:
    """Lists inside one another."""
    value: Any = []
    for _ in range(levels):
        value = [value]
    return value


def value(rng: random.Random) -> Any:
    """Anything that JSON or YAML may hold where something else is wanted."""
    kind = rng.randrange(8)
    if kind < 3:
        return rng.choice(NUMBERS)
    if kind < 5:
        return rng.choice(WORDS)
    return rng.choice(
        (None, True, [], {}, [[]], {"a": 1}, [1, "a", None], [0.5] * 3000, deep(30), {"": ""})
    )


def places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to all nodes below the root."""
    found = []
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, child in items:
        found.append((*path, key))
        if isinstance(child, (dict, list)):
            found += places(child, (*path, key))
    return found


def spoil_tree(rng: random.Random, tree: Any) -> Any:
    """A copy with one to three nodes replaced, removed, renamed or repeated."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.randint(1, 3)):
        paths = places(tree) if isinstance(tree, (dict, list)) else []
        if not paths or rng.random() < 0.03:
            return value(rng)
        *way, last = rng.choice(paths)
        parent = tree
        for key in way:
            parent = parent[key]
        action = rng.randrange(5)
        if action < 3:
            parent[last] = value(rng)
        elif action == 3:
            del parent[last]
        elif isinstance(parent, dict):
            parent[rng.choice(WORDS)] = parent[last]
        else:
            parent.append(parent[last])
    return tree


def spoil_bytes(rng: random.Random, data: bytes) -> bytes:
    """Cut off, flipped, filled, repeated or replaced."""
    body = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(body) + 1)
        action = rng.randrange(7)
        if action == 0:
            del body[at:]
        elif action == 1 and body:
            for _ in range(rng.randint(1, 8)):
                body[rng.randrange(len(body))] ^= 1 << rng.randrange(8)
        elif action == 2:
            body[at : at + rng.randint(1, 64)] = rng.randbytes(rng.randint(0, 64))
        elif action == 3:
            body[at:at] = body[: rng.randint(0, 200)]
        elif action == 4 and body:
            word = rng.choice((b"\xff" * 8, b"\x00" * 8, b"\xff\xff\xff\x7f", b"NaN", b"-1"))
            body[at : at + len(word)] = word
        elif action == 5:
            del body[at : at + rng.randint(1, 64)]
        else:
            body[at:at] = rng.choice(WORDS).encode("utf-8", "surrogatepass")
    return bytes(body)


def spoil_text(rng: random.Random, text: str) -> bytes:
    """Text with lines moved, numbers exchanged, or damaged as bytes."""
    if rng.random() < 0.5:
        return spoil_bytes(rng, text.encode())
    lines = text.splitlines()
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(lines))
        action = rng.randrange(4)
        if action == 0:
            lines[at] = " " * rng.randint(0, 9) + lines[at].lstrip()
        elif action == 1:
            lines.insert(at, rng.choice(lines))
        elif action == 2:
            head, colon, _ = lines[at].partition(":")
            lines[at] = f"{head}{colon or ':'} {rng.choice((*NUMBERS, *WORDS))}"
        else:
            lines[at] = rng.choice(BOMBS[:3])
    return "\n".join(lines).encode("utf-8", "surrogatepass")


BOMBS = (
    "a: &a [x, x]\nb: &b [*a, *a, *a, *a]\nc: &c [*b, *b, *b, *b]\nd: [*c, *c, *c, *c, *c]",
    "x: &x {a: 1}\ny: {<<: [*x, *x, *x, *x, *x, *x]}",
    "<<: {a: 1}",
    "[" * 100_000,
    '{"a":' * 100_000,
    "a: " * 50_000,
    "- " * 100_000,
)


def odd_file(rng: random.Random, path: Path) -> str:
    """Put something at a path that is no regular file, or a strange one; says what."""
    kind = rng.choice(
        (
            "fifo",
            "directory",
            "zero",
            "loop",
            "nothing",
            "sparse",
            "empty",
            "bomb",
            "lfs",
            "binary",
        )
    )
    if path.is_dir() and not path.is_symlink():
        return "unchanged"
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "zero":
        path.symlink_to("/dev/zero")
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "nothing":
        path.symlink_to("missing")
    elif kind == "sparse":
        with path.open("wb") as file:
            file.truncate(8 * 2**30)
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "bomb":
        path.write_text(rng.choice(BOMBS))
    elif kind == "lfs":
        path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n")
    else:
        path.write_bytes(rng.randbytes(rng.randint(1, 5000)))
    return kind


def spoil_file(rng: random.Random, path: Path) -> None:
    """Damage a file that is there, by its kind."""
    if rng.random() < 0.15:
        odd_file(rng, path)
    elif path.suffix in (".json", ".jsonl") and rng.random() < 0.6:
        tree = json.loads(path.read_text("utf-8").splitlines()[0] if path.suffix == ".jsonl"
                          else path.read_text("utf-8"))  # fmt: skip
        text = json.dumps(spoil_tree(rng, tree))
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
    elif path.suffix in (".yaml", ".yml"):
        path.write_bytes(spoil_text(rng, path.read_text("utf-8")))
    else:
        path.write_bytes(spoil_bytes(rng, path.read_bytes()))
