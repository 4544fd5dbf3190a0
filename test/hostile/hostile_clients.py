"""Hostile clients of the policy server: fuzzed frames, half frames, bombs, many connections.

python test/hostile/hostile_clients.py --frames 10000        # part of `make hostile`

The server is `pi05 serve`'s, in a process of its own, with a policy that answers at once. Each
frame must be answered by a chunk or an error, or end its connection alone; a good client beside
them must be answered all the time, and the server's memory must stay flat.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import io
import os
import random
import socket
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from PIL import Image
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from pi05_ros.policy.remote.array_codec import DIALECTS, pack, unpack

PATIENCE_S = 60.0
LIMIT_MB = 48.0
"""What the server's memory may grow by from the first tenth of the frames to the last: buffers
of the largest frames, which the allocator keeps."""


def observation(size: int = 32) -> dict[str, Any]:
    image = np.zeros((size, size, 3), np.uint8)
    return {"images": {"base": image, "wrist": image}, "state": np.zeros(8), "prompt": "go"}


def array(dtype: str = "|u1", shape: Any = (2, 2, 3), data: Any = b"\0" * 12) -> dict[bytes, Any]:
    return {b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": shape}


def jpeg(width: int, height: int) -> bytes:
    """A small picture whose header claims another size."""
    out = io.BytesIO()
    Image.new("RGB", (16, 16)).save(out, "JPEG")
    data = bytearray(out.getvalue())
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    return bytes(data)


def damaged(rng: random.Random) -> bytes:
    """A good request with bytes changed, cut off or put in."""
    frame = bytearray(pack(observation(), rng.choice(DIALECTS)))
    for _ in range(rng.randint(1, 5)):
        place = rng.randrange(min(len(frame), 400) or 1)
        kind = rng.randrange(3)
        if kind == 0 and frame:
            frame[place] = rng.randrange(256)
        elif kind == 1:
            del frame[place:]
            break
        else:
            frame[place:place] = rng.randbytes(rng.randint(1, 9))
    return bytes(frame)


def huge(rng: random.Random) -> bytes:
    """Lengths that no frame can have."""
    length = rng.choice((2**31 - 1, 2**32 - 1)).to_bytes(4, "big")
    return rng.choice((b"\xdd", b"\xdf", b"\xc6", b"\xdb", b"\xc9")) + length + b"\x81\xa1"


def nested(rng: random.Random) -> bytes:
    """Lists or maps inside one another, also where an array is wanted."""
    levels = rng.choice((10, 600, 5000, 100_000))
    opening = rng.choice((b"\x91", b"\x81\xa1a", b"\x81\xa6images"))
    return rng.choice((b"", b"\x82\xa5state")) + opening * levels + b"\xc0"


def wrong_array(rng: random.Random) -> bytes:
    """Types, shapes and data that are no array, where one is wanted."""
    kind: Any = rng.choice(
        ("|O", "|O8", "|V16", "<U4", "<M8[ns]", "<c16", "f9", "", None, 7, ["a"], "<f8,<f8", "<f4")
    )
    shape = rng.choice(
        ((2, 2, 3), (2**40, 3), (-1, 12), (0,), (1,) * 40, "x", None, (2**63, 2**63), (3.5,))
    )
    data = rng.choice((b"\0" * 12, b"", "text", None, b"cos\nsystem\n(S'true'\ntR.", [1]))
    value = observation()
    bad = array(kind, shape, data)
    if rng.random() < 0.3:
        bad = {b"nd": True, b"type": kind, b"kind": rng.choice((b"O", b"V", b"")), b"shape": shape,
               b"data": data}  # fmt: skip
    place = rng.choice(("state", "images", "base"))
    if place == "base":
        value["images"] = {"base": bad}
    else:
        value[place] = bad
    return bytes(msgpack.packb(value, default=lambda found: array(data=found.tobytes())))


def wrong_value(rng: random.Random) -> bytes:
    """Fields with other values than are accepted."""
    value = observation()
    key = rng.choice(
        ("state", "prompt", "seed", "deadline_ms", "reset", "denoise_steps", "request_id",
         "chunk_mode", "kv_reuse", "steps_since", "delay_steps", "stamp_ns", "age_s", "x")
    )  # fmt: skip
    value[key] = rng.choice(
        (None, -1, 2**63, 1e308, float("nan"), "x" * 70_000, [], {}, True, b"\xff", [1, "a"],
         np.zeros(8, "<f2"), np.full(8, np.inf), np.zeros((8, 8)), {"a": {"b": []}}, "\x00", "é")
    )  # fmt: skip
    return pack(value)


def picture(rng: random.Random) -> bytes:
    """Pictures that claim to be enormous, or are none."""
    value = observation()
    value["images"]["base"] = {
        "jpeg": rng.choice(
            (jpeg(65000, 65000), jpeg(5000, 5000), jpeg(1, 65000), jpeg(0, 0), b"", b"\xff\xd8",
             jpeg(16, 16)[:-40], rng.randbytes(300), zlib.compress(b"\0" * 10**6))
        )
    }  # fmt: skip
    return pack(value)


KINDS = {
    "damaged": damaged,
    "huge length": huge,
    "nested": nested,
    "wrong array": wrong_array,
    "wrong value": wrong_value,
    "picture": picture,
    "random": lambda rng: rng.randbytes(rng.choice((0, 1, 7, 300, 20_000))),
    "too large": lambda rng: b"\0" * 1_200_000,
}


def dial(port: int) -> ClientConnection:
    found = connect(f"ws://127.0.0.1:{port}", compression=None, max_size=None).__enter__()
    found.recv(PATIENCE_S)
    return found


def fuzz(port: int, frames: int, seed: int, counts: Counter[str]) -> Iterator[None]:
    """Send frames one after the other, over a new connection where one was ended."""
    names, connection = list(KINDS), dial(port)
    for number in range(frames):
        rng = random.Random(f"{seed} {number}")
        kind = names[number % len(names)]
        try:
            connection.send(KINDS[kind](rng))
            answer = connection.recv(PATIENCE_S)
            counts["refused" if isinstance(answer, str) else "answered"] += 1
        except ConnectionClosed:
            counts["ended its connection"] += 1
            connection = dial(port)
        except TimeoutError:
            counts[f"no answer: {kind} {seed} {number}"] += 1
            connection = dial(port)
        yield
    connection.close()


def raw(port: int, text: bytes, upgrade: bool) -> socket.socket:
    """A plain socket that has sent bytes, after the handshake or in its place."""
    end = socket.create_connection(("127.0.0.1", port), PATIENCE_S)
    if upgrade:
        key = base64.b64encode(os.urandom(16)).decode()
        end.sendall(
            f"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        end.recv(100)
    with contextlib.suppress(OSError):
        end.sendall(text)
    return end


RAW = (
    (b"GET / HTTP/1.1\r\n", False), (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 5000, False),
    (b"\x16\x03\x01\x02\x00", False), (b"POST / HTTP/9.9\r\n\r\n", False), (b"\0" * 9000, False),
    (b"\x82\xfe\xff\xffhalf", True), (b"\x82\xff" + b"\xff" * 8, True), (b"\x82\x85", True),
    (b"\xc2\xfe\x00\x20" + b"\0" * 36, True), (b"\x02\x81\0\0\0\0a" * 5, True),
    (b"\x89\xff" + b"\0" * 20, True), (b"\x82\x03abc", True), (b"\x88\x80\0\0\0\0", True),
    (b"\x82\xff\0\0\0\0\7\xff\xff\xff" + b"\0" * 4 + b"x" * 100, True),
)  # fmt: skip
"""Half requests, half frames, frames without a mask, compressed, with impossible lengths."""


def good(port: int) -> int:
    """Seed that a good client's request was answered with."""
    with dial(port) as connection:
        connection.send(pack({**observation(), "seed": 77}))
        answer = connection.recv(PATIENCE_S)
        assert isinstance(answer, bytes), answer
        return int(unpack(answer).value["seed"])


def good_when_there_is_room(port: int) -> None:
    """A good client is answered once the sessions of those that hold them have ended."""
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            assert good(port) == 77
            return
        except Exception:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


def crowd(port: int, number: int, counts: Counter[str]) -> list[socket.socket]:
    """Connections that stay, a third of each: silent, half a request, half a frame."""
    kinds = ((b"", False), (b"GET / HTTP/1.1\r\n", False), (b"\x82\xfe\xff\xffhalf", True))
    held = []
    for index in range(number):
        try:
            held.append(raw(port, *kinds[index % 3]))
            counts["held connections"] += 1
        except OSError:
            counts["connections not accepted"] += 1
    return held


def memory_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no VmRSS")


@contextlib.contextmanager
def server() -> Iterator[tuple[subprocess.Popen[str], int]]:
    """`serve_instant` of `pi05 bench serve`, with frames of at most 1 MB."""
    command = "from pi05_ros.bench.serve import serve_instant; serve_instant('droid', 1_000_000)"
    process = subprocess.Popen([sys.executable, "-c", command], stdout=subprocess.PIPE, text=True,
                               stderr=subprocess.DEVNULL)  # fmt: skip
    try:
        assert process.stdout is not None
        yield process, int(process.stdout.readline().rsplit(":", 1)[1])
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


def attack(frames: int, connections: int, seed: int = 0) -> tuple[Counter[str], list[str], str]:
    """Outcomes, what must not be, and how the memory went."""
    counts: Counter[str] = Counter()
    faults: list[str] = []
    with server() as (process, port):
        before = memory = 0.0
        for number, _ in enumerate(fuzz(port, frames, seed, counts)):
            if number == frames // 10:
                before = memory_mb(process.pid)
            if number % 500 == 0 and good(port) != 77:
                faults.append("a good client was answered wrongly")
        memory = memory_mb(process.pid)
        for text, upgrade in RAW:
            raw(port, text, upgrade).close()
            counts["raw"] += 1
        held = crowd(port, connections, counts)
        if process.poll() is not None:
            faults.append(f"the server ended with code {process.returncode}")
        for end in held:
            end.close()
        good_when_there_is_room(port)
        after = memory_mb(process.pid)
        if memory - before > LIMIT_MB or after - before > LIMIT_MB + connections / 10:
            faults.append(f"memory grew from {before:.0f} to {memory:.0f}, {after:.0f} MB")
        process.terminate()
        if process.wait(PATIENCE_S) != 0:
            faults.append(f"SIGTERM gave code {process.returncode}")
    faults += [name for name in counts if name.startswith("no answer")]
    text = f"memory {before:.0f} MB after a tenth of the frames, {memory:.0f} MB after all, "
    return counts, faults, text + f"{after:.0f} MB after {connections} connections"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=10_000)
    parser.add_argument("--connections", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    began = time.monotonic()
    counts, faults, memory = attack(args.frames, args.connections, args.seed)
    print("\n".join(f"{count:8d}  {name}" for name, count in sorted(counts.items())))
    print(f"{memory}; {time.monotonic() - began:.0f} s")
    print("\n".join(faults) if faults else "no fault")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
