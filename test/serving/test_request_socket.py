"""The node's socket against servers that split, mix and end what they send."""

import contextlib
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from serving_rig import StubPolicy, running, wait_for
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Frame, Opcode
from websockets.sync.server import serve

from pi05_ros.policy import Observation
from pi05_ros.policy.remote.array_codec import pack, unpack
from pi05_ros.policy.remote.connection import Connection, DialOptions
from pi05_ros.policy.remote.errors import RemoteError
from pi05_ros.policy.remote.remote_options import RemoteOptions
from pi05_ros.policy.remote.remote_policy import RemotePolicy
from pi05_ros.policy.remote.request_socket import RequestSocket, UnaskedError
from pi05_ros.serving.access import tls_context

PATIENCE_S = 60.0
HELD = {"images": {r: np.zeros((8, 8, 3), np.uint8) for r in ("base", "wrist")},
        "state": np.zeros(8), "prompt": "go"}  # fmt: skip


def soon():
    return time.monotonic() + PATIENCE_S


@contextlib.contextmanager
def serving(handler):
    with serve(handler, "127.0.0.1", 0, compression=None, max_size=None) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server.socket.getsockname()[1]
        finally:
            server.shutdown()
            thread.join(PATIENCE_S)


@contextlib.contextmanager
def dialed(port, max_size=2**24):
    socket = RequestSocket(f"ws://127.0.0.1:{port}", None, PATIENCE_S, max_size)
    try:
        yield socket
    finally:
        socket.close()


def test_what_is_sent_arrives_and_comes_back_whatever_its_size():
    def echo(socket):
        for message in socket:
            half = len(message) // 2
            if half:
                socket.send([message[:half], message[half:]])  # two fragments
            else:
                socket.send(message)

    with serving(echo) as port, dialed(port) as socket:
        for size in (0, 1, 7, 8, 9, 125, 126, 127, 65_535, 65_536, 65_537, 1_000_003, 5):
            payload = os.urandom(size)
            socket.send(payload, soon())
            assert socket.receive(soon()) == payload


def test_pings_are_answered_and_an_end_is_noticed_while_nothing_is_asked():
    ponged, may_end = threading.Event(), threading.Event()

    def handler(socket):
        socket.send(pack({}))
        if not may_end.is_set() and socket.ping().wait(PATIENCE_S):
            ponged.set()
        may_end.wait(PATIENCE_S)

    with serving(handler) as port:
        connection = Connection(DialOptions(f"ws://127.0.0.1:{port}"), lambda metadata: None)
        try:
            assert ponged.wait(PATIENCE_S)
            assert not connection.problem
            seen = []
            may_end.set()
            wait_for(lambda: seen.append(connection.problem) or seen[-1], PATIENCE_S)
            assert "the connection broke" in seen[-1]
        finally:
            connection.close()


def test_a_message_that_answers_nothing_is_never_taken_for_an_answer():
    def handler(socket):
        socket.send(b"hello")
        socket.send(b"not asked for")
        socket.recv()

    with serving(handler) as port, dialed(port) as socket:
        assert socket.receive(soon()) == b"hello"
        wait_for(lambda: socket._came or socket._readable(), PATIENCE_S)
        with pytest.raises(UnaskedError):
            socket.send(b"x", soon())


@pytest.mark.parametrize("kind", ["closed", "masked", "oversize", "text"])
def test_what_a_server_may_not_send_ends_the_connection(kind):
    def handler(socket):
        socket.recv()
        if kind == "masked":
            socket.socket.sendall(Frame(Opcode.BINARY, b"x").serialize(mask=True))
            socket.recv()
        elif kind == "oversize":
            socket.send(bytes(2000))
        elif kind == "text":
            socket.socket.sendall(Frame(Opcode.TEXT, b"\xff").serialize(mask=False))

    with serving(handler) as port, dialed(port, max_size=1000) as socket:
        socket.send(b"x", soon())
        with pytest.raises((ConnectionClosed, UnicodeDecodeError)):
            socket.receive(soon())


def test_a_refused_handshake_says_why_and_leaves_no_file_behind():
    files = lambda: len(os.listdir("/proc/self/fd"))  # noqa: E731
    with running(max_sessions=1) as server, dialed(server.port) as first:
        first.receive(soon())
        before = files()
        for _ in range(5):
            with pytest.raises(InvalidStatus, match="503"), dialed(server.port):
                pass
        wait_for(lambda: files() <= before + 2, PATIENCE_S)  # the server's side may still close


def test_answers_to_one_who_does_not_read_stay_whole_and_in_order():
    policy = StubPolicy(horizon=60_000)  # 2 MB an answer
    with running(policy) as server, dialed(server.port, max_size=None) as socket:
        socket.receive(soon())
        frames = [pack({**HELD, "seed": n, "request_id": n}) for n in range(6)]
        for number, frame in enumerate(frames):  # none of them is replaced by the next
            socket._socket.settimeout(PATIENCE_S)
            socket._socket.sendall(socket._masked(frame))
            assert policy.begun.acquire(timeout=PATIENCE_S)
            socket._socket.sendall(Frame(Opcode.PING, b"in between").serialize(mask=True))
            wait_for(lambda n=number: len(policy.seen) > n)
        for number in range(6):
            answer = unpack(socket.receive(soon())).value
            assert answer["request_id"] == number
            assert answer["actions"].shape == (60_000, 8)
            assert (answer["actions"] == number).all()
        wait_for(lambda: server.server.unanswered == 0)


def test_requests_and_answers_of_any_size_pass_through_tls(monkeypatch):
    data = Path(__file__).parent / "data"
    monkeypatch.setenv("SSL_CERT_FILE", str(data / "cert.pem"))
    policy = StubPolicy(horizon=900)
    with running(policy, tls=tls_context(data / "cert.pem", data / "key.pem")) as server:
        address = f"wss://127.0.0.1:{server.port}"
        far = RemotePolicy(address, options=RemoteOptions(deadline_s=PATIENCE_S))
        try:
            for number, size in enumerate([(48, 64), (480, 640), (720, 1280), (8, 8)]):
                images = {r: np.full((*size, 3), number, np.uint8) for r in ("base", "wrist")}
                chunk = far.infer(Observation(images, np.zeros(8), "go"), seed=number)
                assert chunk.actions.shape == (900, 8)
                assert (chunk.actions == number).all()
                for image in policy.seen[-1][0].images.values():
                    np.testing.assert_array_equal(image, images["base"])
        finally:
            far.close()


def test_a_server_that_pings_without_end_costs_the_deadline_only():
    flooding, over = threading.Event(), threading.Event()

    def handler(socket):
        socket.send(pack({}))
        pings = 200 * Frame(Opcode.PING, b"x" * 100).serialize(mask=False)
        with contextlib.suppress(OSError):
            while not over.is_set():
                socket.socket.sendall(pings)
                flooding.set()

    with serving(handler) as port:
        connection = Connection(DialOptions(f"ws://127.0.0.1:{port}"), lambda metadata: None)
        try:
            assert flooding.wait(PATIENCE_S)
            wait_for(lambda: not connection.problem, PATIENCE_S)
            with pytest.raises(RemoteError):
                connection.ask({"images": np.zeros(1000)}, 0.5)
        finally:
            over.set()
            connection.close()


def test_a_server_that_answers_without_being_asked_is_dropped():
    def handler(socket):
        socket.send(pack({}))
        for _ in socket:
            socket.send(pack({"n": 1}))
            socket.send(pack({"n": 2}))

    accepted = []
    with serving(handler) as port:
        connection = Connection(DialOptions(f"ws://127.0.0.1:{port}"), accepted.append)
        try:
            assert connection.wait(3, PATIENCE_S)
            assert connection.ask({}, PATIENCE_S)["n"] == 1
            wait_for(lambda: len(accepted) == 2, PATIENCE_S)  # looked at, dropped, dialed again
            wait_for(lambda: not connection.problem, PATIENCE_S)
            assert connection.ask({}, PATIENCE_S)["n"] == 1
        finally:
            connection.close()
