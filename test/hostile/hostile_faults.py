"""Generators of faults: bytes that are damaged, values in the wrong place, files that are none.

Everything is a function of the generator it is given, so that a case can be made again by seed.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import random
import socket
import threading
import time
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
NOTATIONS = (
    "0x10", "0o17", "017", "1_000", ".inf", "-.inf", ".nan", "NaN", "Infinity", "1e400", "-1e400",
    "yes", "No", "on", "TRUE", "12:30:00", "+1", "1.", ".5", "0b11", "1e5", "1E+2", "0x1p3", "1,5",
    "1 000", "\u0661\u0662", "2024-01-01", "!!float 3", "!!int 7", "!degrees 90", "9" * 5000,
)  # fmt: skip
"""Numbers as other languages write them, and words that some readers take for numbers."""


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
            lines[at] = f"{head}{colon or ':'} {rng.choice((*NUMBERS, *WORDS, *NOTATIONS))}"
        else:
            lines[at] = rng.choice(BOMBS[:3])
    return encoded(rng, "\n".join(lines))


def encoded(rng: random.Random, text: str) -> bytes:
    """Text as bytes, now and then as editors of other systems save it."""
    if rng.random() < 0.7:
        return text.encode("utf-8", "surrogatepass")
    ending = rng.choice(("\n", "\r\n", "\r", "\u2028", "\x85"))
    coding = rng.choice(("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1"))
    plain = text.replace("\n", ending).encode("utf-8", "surrogatepass").decode("utf-8", "replace")
    return plain.encode(coding, "replace")


def spoil_json(rng: random.Random, tree: Any) -> bytes:
    """JSON text of a spoiled tree, now and then with what only a writer of text can do wrong."""
    text = json.dumps(spoil_tree(rng, tree))
    if rng.random() < 0.3 and text.startswith("{"):
        kind = rng.randrange(4)
        if kind == 0 and '"' in text:
            key = text.split('"')[1]
            text = text[:1] + f'"{key}": {rng.choice(("0", "null", "[]"))}, ' + text[1:]
        elif kind == 1:
            text = text.replace(": ", f": {rng.choice(NOTATIONS)} ", 1)
        elif kind == 2:
            text = text[:-1] + ",}"
        else:
            text = "/* a comment */ " + text
    return encoded(rng, text)


BOMBS = (
    "a: &a [x, x]\nb: &b [*a, *a, *a, *a]\nc: &c [*b, *b, *b, *b]\nd: [*c, *c, *c, *c, *c]",
    "x: &x {a: 1}\ny: {<<: [*x, *x, *x, *x, *x, *x]}",
    "<<: {a: 1}",
    "[" * 100_000,
    '{"a":' * 100_000,
    "a: " * 50_000,
    "- " * 100_000,
)


_changers: list[threading.Thread] = []


def settle() -> None:
    """Wait until no file is changed any more."""
    while _changers:
        _changers.pop().join()


def _change(path: Path, times: int) -> None:
    """Shorten, lengthen and replace a file while it may be read."""
    for turn in range(times):
        with contextlib.suppress(OSError), path.open("r+b") as file:
            file.truncate((turn * 7919) % 20_000)
        time.sleep(0.001)
        if turn % 5 == 4:
            other = path.with_name(path.name + ".new")
            with contextlib.suppress(OSError):
                other.write_bytes(b"{" * turn)
                other.replace(path)


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
            "circle",
            "mute",
            "socket",
            "memory",
            "changing",
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
    elif kind == "circle":
        other = path.with_name(path.name + ".other")
        other.unlink(missing_ok=True)
        other.symlink_to(path.name)
        path.symlink_to(other.name)
    elif kind == "mute":
        path.write_text("{}")
        path.chmod(0)
    elif kind == "socket":
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as made:
            made.bind(str(path))
    elif kind == "memory":
        path.symlink_to("/proc/self/mem")
    elif kind == "changing":
        path.write_text("a: 1\n" * 5000)
        _changers.append(threading.Thread(target=_change, args=(path, rng.randint(2, 30))))
        _changers[-1].start()
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
        path.write_bytes(spoil_json(rng, tree))
    elif path.suffix in (".yaml", ".yml"):
        path.write_bytes(spoil_text(rng, path.read_text("utf-8")))
    else:
        path.write_bytes(spoil_bytes(rng, path.read_bytes()))
