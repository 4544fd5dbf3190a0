"""The remote policy over a network that is slow, cut or silent, to a server that goes away."""

import contextlib
import socket
import threading

import numpy as np
import pytest
from fault_proxy import proxy_to
from serving_rig import StubPolicy, running, wait_for

from pi05_ros.policy import Observation
from pi05_ros.policy.remote.array_codec import pack
from pi05_ros.policy.remote.connection import Connection, DialOptions
from pi05_ros.policy.remote.errors import RemoteError
from pi05_ros.policy.remote.remote_options import RemoteOptions
from pi05_ros.policy.remote.remote_policy import RemotePolicy

PATIENCE_S = 60.0


def observation(size=(48, 64)):
    images = {role: np.zeros((*size, 3), np.uint8) for role in ("base", "wrist")}
    return Observation(images, np.zeros(8), "pick it up")


@contextlib.contextmanager
def remote(port, **options):
    far = RemotePolicy(f"ws://127.0.0.1:{port}", options=RemoteOptions(**options))
    try:
        yield far
    finally:
        far.close()


def recovered(far, seed):
    """The first chunk that comes again; a slow machine may miss a short deadline before."""
    found = []

    def once():
        with contextlib.suppress(RemoteError):
            found.append(far.infer(observation(), seed=seed))
        return found

    wait_for(once, PATIENCE_S)
    assert found[0].seed == seed
    assert (found[0].actions == seed).all()


def failed(far):
    try:
        far.infer(observation(), seed=2)
    except RemoteError as error:
        return "connection" in str(error)
    return False


@pytest.mark.parametrize("fault", ["delay", "loss", "half-open"])
def test_an_answer_that_does_not_come_in_time_is_told_and_never_used_later(fault):
    with (
        running() as server,
        proxy_to(server.port) as proxy,
        remote(proxy.port, deadline_s=1.0) as far,
    ):
        recovered(far, 1)
        if fault == "delay":
            proxy.delay_s = 1.5
        elif fault == "loss":
            proxy.stalled = True
        else:
            proxy.silent = True
        with pytest.raises(RemoteError, match="no answer within 1000 ms"):
            far.infer(observation(), seed=2)
        if fault != "delay":  # through which it connects again
            assert "no answer within 1000 ms" in far.health().warning
        proxy.delay_s, proxy.stalled, proxy.silent = 0.0, False, False
        recovered(far, 3)
        assert not far.health().warning


@pytest.mark.parametrize("way", ["up", "down"])
def test_a_cut_in_the_middle_of_a_frame(way):
    with running() as server, proxy_to(server.port) as proxy:
        # Behind the handshake: in the request's pixels, or in the answer's numbers.
        setattr(proxy, f"cut_{way}", 9000 if way == "up" else first_frame(server.port) + 500)
        with remote(proxy.port, deadline_s=20.0) as far:
            proxy.cut_up = proxy.cut_down = None
            with pytest.raises(RemoteError, match="the connection broke"):
                far.infer(observation(), seed=1)
            recovered(far, 2)


def first_frame(port):
    """Bytes until the end of the metadata."""
    from websockets.sync.client import connect

    with connect(f"ws://127.0.0.1:{port}", compression=None, max_size=None) as ws:
        return len(ws.recv(20))


def test_the_network_is_away_while_it_dials():
    with (
        running() as server,
        proxy_to(server.port) as proxy,
        remote(proxy.port, deadline_s=20.0) as far,
    ):
        recovered(far, 1)
        proxy.refuse = True
        wait_for(lambda: failed(far), PATIENCE_S)
        dialed = proxy.accepted
        wait_for(lambda: proxy.accepted >= dialed + 2, PATIENCE_S)
        with pytest.raises(RemoteError, match="no connection to"):
            far.infer(observation(), seed=2)
        assert far.health().warning
        proxy.refuse = False
        recovered(far, 3)


def test_a_connection_that_was_held_back_does_not_replace_the_newer_one():
    with running() as server, proxy_to(server.port) as proxy:
        proxy.hold = True
        accepted = []
        options = DialOptions(f"ws://127.0.0.1:{proxy.port}", connect_s=0.3, longest_pause_s=0.3)
        connection = Connection(options, accepted.append)
        try:
            wait_for(lambda: proxy.accepted >= 2, PATIENCE_S)
            proxy.hold = False  # the old attempts go through now, the dialer has given them up
            wait_for(lambda: not connection.problem, PATIENCE_S)
            request = {"images": {}, "state": np.zeros(8), "prompt": "go"}
            request["images"] = {r: np.zeros((8, 8, 3), np.uint8) for r in ("base", "wrist")}
            answers = [connection.ask({**request, "seed": n}, PATIENCE_S) for n in (5, 6)]
            assert [answer["seed"] for answer in answers] == [5, 6]
            wait_for(lambda: "pi05_sessions 1.0" in server.server.metrics.text().decode())
            assert len(accepted) == 1
        finally:
            connection.close()


def test_a_server_that_does_not_read_costs_the_deadline_only():
    """Two pictures of 8 MB do not fit into the buffers of a connection that nobody reads."""
    with (
        running() as server,
        proxy_to(server.port) as proxy,
        remote(proxy.port, deadline_s=1.0) as far,
    ):
        recovered(far, 1)
        proxy.stalled = True
        done = threading.Event()

        def ask():
            with pytest.raises(RemoteError, match="no answer within 1000 ms"):
                far.infer(observation((1600, 1700)), seed=2)
            done.set()

        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        assert done.wait(PATIENCE_S)
        thread.join(PATIENCE_S)
        proxy.stalled = False
        recovered(far, 3)


@pytest.mark.parametrize("when", ["waiting", "computing"])
def test_a_server_that_drains_answers_then_is_named_and_used_again(when):
    policy = StubPolicy()
    with running(policy) as server:
        port = server.port
        far = RemotePolicy(f"ws://127.0.0.1:{port}", options=RemoteOptions(deadline_s=60.0))
        answers = []
        if when == "computing":
            policy.gate.clear()
            asking = threading.Thread(
                target=lambda: answers.append(far.infer(observation(), seed=4)), daemon=True
            )
            asking.start()
            assert policy.begun.acquire(timeout=PATIENCE_S)
            server.stop()
            wait_for(lambda: server.server._draining, PATIENCE_S)
            policy.gate.set()
            asking.join(PATIENCE_S)
            assert (answers[0].actions == 4).all()
        else:
            server.stop()
        server.join()
    try:
        with pytest.raises(RemoteError, match=r"connection"):
            far.infer(observation(), seed=5)
        wait_for(lambda: far.health().warning, PATIENCE_S)
        with contextlib.closing(socket.socket()) as free:
            free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            free.bind(("127.0.0.1", port))
        with running(StubPolicy(), port=port):
            recovered(far, 6)
    finally:
        far.close()


def test_what_a_client_sent_of_a_request_before_it_vanished_is_not_answered():
    policy = StubPolicy()
    with running(policy) as server, proxy_to(server.port) as proxy:
        from websockets.sync.client import connect

        proxy.cut_up = 3000
        image = np.zeros((48, 64, 3), np.uint8)
        frame = pack({"images": {"base": image, "wrist": image}, "state": np.zeros(8)})
        with connect(f"ws://127.0.0.1:{proxy.port}", compression=None, max_size=None) as ws:
            ws.recv(20)
            with contextlib.suppress(Exception):
                ws.send(frame)
                ws.recv(20)
        wait_for(lambda: "pi05_sessions 0.0" in server.server.metrics.text().decode())
        assert policy.seen == []
