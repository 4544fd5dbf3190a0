"""The server on a real socket: the unmodified openpi client, hostile clients, doors, draining."""

import contextlib
import json
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from socket import create_connection

import numpy as np
import pytest
from serving_rig import StubPolicy, droid_request, own_request, running, wait_for
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Frame, Opcode
from websockets.sync.client import connect

from pi05_ros.cli.main import main
from pi05_ros.policy import Policy
from pi05_ros.policy.remote.array_codec import DIALECTS, pack, unpack
from pi05_ros.policy.remote.errors import KeyFileError
from pi05_ros.policy.remote.key_file import read_keys
from pi05_ros.serving.access import Access, check_exposure, tls_context
from pi05_ros.serving.errors import ServingError

PATIENCE_S = 60.0


def dial(server, **options):
    address = f"ws://127.0.0.1:{server.port}"
    socket = connect(address, compression=None, max_size=None, **options).__enter__()
    return socket, unpack(socket.recv(PATIENCE_S)).value


def ask(socket, value, dialect="openpi"):
    socket.send(pack(value, dialect))
    answer = socket.recv(PATIENCE_S)
    return answer if isinstance(answer, str) else unpack(answer).value


def get(server, path, **headers):
    request = urllib.request.Request(f"http://127.0.0.1:{server.port}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_the_unmodified_openpi_client(openpi_client):
    with running() as server:
        client = openpi_client.websocket_client_policy.WebsocketClientPolicy(
            "127.0.0.1", server.port
        )
        meta = client.get_server_metadata()
        assert meta["robot"] == "droid"
        assert meta["action"]["names"][-1] == "gripper"
        assert meta["checkpoint_hash"] == "sha256:0"
        for number in range(3):
            answer = client.infer(droid_request())
            assert answer["actions"].shape == (4, 8)
            assert answer["actions"].dtype == np.float32
            assert answer["server_timing"]["infer_ms"] >= 0
            assert ("prev_total_ms" in answer["server_timing"]) == (number > 0)
        with pytest.raises(RuntimeError, match="key 'x' is not known"):
            client.infer(droid_request(x=1))
        assert client.infer(droid_request())["actions"].shape == (4, 8)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_answer_is_in_the_dialect_of_the_request(dialect):
    with running() as server:
        socket, _ = dial(server)
        with socket:
            socket.send(pack(droid_request(), dialect))
            answer = unpack(socket.recv(PATIENCE_S))
            assert answer.dialect == dialect
            assert answer.value["actions"].shape == (4, 8)


def test_our_form_says_what_the_actions_are():
    with running() as server:
        socket, _ = dial(server)
        with socket:
            answer = ask(socket, own_request(request_id=17, seed=3))
            assert answer["request_id"] == 17
            assert answer["seed"] == 3
            assert answer["names"] == list(server.policy.robot.action_names)
            assert answer["step_s"] == pytest.approx(1 / 15)
            assert set(answer["actions"].ravel()) == {3.0}


def test_seeds_count_per_session_and_reset_starts_them_over():
    with running() as server:
        one, _ = dial(server)
        two, _ = dial(server)
        with one, two:
            seeds = [ask(s, own_request())["seed"] for s in (one, one, two, one, two)]
            assert seeds == [0, 1, 0, 2, 1]
            assert ask(one, {"reset": True})["reset"] is True
            assert ask(one, own_request())["seed"] == 0
            assert ask(two, own_request(reset=True))["seed"] == 0


def test_the_newest_request_of_a_session_wins_and_all_are_answered_in_order():
    policy = StubPolicy()
    with running(policy) as server:
        socket, _ = dial(server)
        with socket:
            policy.gate.clear()
            socket.send(pack(own_request(request_id=0)))
            assert policy.begun.acquire(timeout=PATIENCE_S)
            for number in (1, 2, 3):
                socket.send(pack(own_request(request_id=number)))
            replaced = server.server.metrics.requests.labels("replaced")
            wait_for(lambda: replaced._value.get() == 2)
            policy.gate.set()
            answers = [socket.recv(PATIENCE_S) for _ in range(4)]
            assert unpack(answers[0]).value["request_id"] == 0
            assert "request 1: replaced by a newer request" in answers[1]
            assert "request 2: replaced by a newer request" in answers[2]
            assert unpack(answers[3]).value["request_id"] == 3
            assert len(policy.seen) == 2


def test_a_reset_holds_though_its_request_was_replaced():
    policy = StubPolicy()
    with running(policy) as server:
        socket, _ = dial(server)
        with socket:
            assert [ask(socket, own_request())["seed"] for _ in range(3)] == [0, 1, 2]
            assert policy.begun.acquire(timeout=PATIENCE_S)
            policy.gate.clear()
            socket.send(pack(own_request()))
            wait_for(lambda: len(policy.seen) == 4)
            socket.send(pack(own_request(reset=True)))
            socket.send(pack(own_request()))
            replaced = server.server.metrics.requests.labels("replaced")
            wait_for(lambda: replaced._value.get() == 1)
            policy.gate.set()
            answers = [socket.recv(PATIENCE_S) for _ in range(3)]
            assert "replaced" in answers[1]
            assert [unpack(answers[i]).value["seed"] for i in (0, 2)] == [3, 0]


def test_a_request_whose_deadline_has_passed_is_not_begun():
    policy = StubPolicy()
    with running(policy) as server:
        one, _ = dial(server)
        two, _ = dial(server)
        with one, two:
            policy.gate.clear()
            one.send(pack(own_request()))
            assert policy.begun.acquire(timeout=PATIENCE_S)
            two.send(pack(own_request(deadline_ms=1)))
            wait_for(lambda: "pi05_waiting_requests 1.0" in get(server, "/metrics")[1])
            time.sleep(0.01)
            policy.gate.set()
            assert "deadline passed" in two.recv(PATIENCE_S)
            assert len(policy.seen) == 1


@pytest.mark.parametrize(
    "frame",
    ["text", b"", b"\xc1", b"\x91" * 50_000, b"\xdd\xff\xff\xff\xff", pack([1]), pack({"x": 1}),
     pack(own_request(state=np.zeros(3))), b"\xff" * 1_500_000],
)  # fmt: skip
def test_a_bad_frame_is_one_error_and_the_session_lives(frame):
    with running(max_frame=1_000_000) as server:
        socket, _ = dial(server)
        with socket:
            socket.send(frame)
            assert isinstance(socket.recv(PATIENCE_S), str)
            assert ask(socket, own_request())["seed"] == 0


def test_a_frame_that_cannot_be_skipped_ends_the_connection_only():
    with running(max_frame=1000) as server:
        socket, _ = dial(server)
        socket.send(b"\0" * 5000)
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv(PATIENCE_S)
        assert closed.value.rcvd.code == 1009
        other, _ = dial(server)
        other.close()


def test_faults_of_the_policy_are_told_without_a_traceback_and_health_says_so():
    policy = StubPolicy()
    with running(policy) as server:
        socket, _ = dial(server)
        with socket:
            assert get(server, "/healthz") == (200, "OK\n")
            policy.fail = ZeroDivisionError("secret path")
            answer = ask(socket, own_request())
            assert "internal error" in answer
            assert "secret" not in answer
            assert get(server, "/healthz") == (503, "inference fails: ZeroDivisionError\n")
            policy.fail = None
            assert ask(socket, own_request())["actions"].shape == (4, 8)
            assert get(server, "/healthz")[0] == 200


def test_keys_open_the_door(tmp_path):
    key = "k" * 32
    with running(access=Access((key.encode(), b"another-key-of-length"))) as server:
        for header in ({}, {"Authorization": f"Bearer {key}"}, {"Authorization": "Api-Key no"}):
            with pytest.raises(InvalidStatus) as refused:
                dial(server, additional_headers=header)
            assert refused.value.response.status_code == 401
            assert get(server, "/metrics", **header)[0] == 401
        assert get(server, "/healthz")[0] == 200
        assert get(server, "/metrics", Authorization=f"Api-Key {key}")[0] == 200
        socket, _ = dial(server, additional_headers={"Authorization": f"Api-Key {key}"})
        with socket:
            assert ask(socket, own_request())["seed"] == 0


def test_a_header_that_is_there_twice_opens_nothing():
    key = "k" * 32
    twice = f"Authorization: Api-Key {key}\r\n"
    with running(access=Access((key.encode(),))) as server:
        for headers, status in (
            (twice, b"101"),
            (2 * twice, b"401"),
            (twice + "Host: y\r\n", b"101"),
        ):
            with create_connection(("127.0.0.1", server.port), PATIENCE_S) as raw:
                raw.sendall(
                    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n"
                    + headers.encode() + b"\r\n"
                )  # fmt: skip
                assert raw.recv(100).split(b" ")[1] == status


def test_one_who_pings_and_never_reads_is_ended_and_the_others_are_answered():
    with running() as server:
        other, _ = dial(server)
        hostile, _ = dial(server)
        with other, contextlib.suppress(ConnectionClosed), hostile:
            pings = b"\x89\xfd" + bytes(4 + 125)
            hostile.recv_flow_control.acquire()  # its thread reads no more
            with contextlib.suppress(OSError):
                hostile.socket.settimeout(PATIENCE_S)
                for _ in range(20_000):
                    hostile.socket.sendall(100 * pings)
                raise AssertionError("260 MB of pings were taken")
            assert ask(other, own_request())["seed"] == 0
            hostile.recv_flow_control.release()
        wait_for(lambda: "pi05_sessions 0.0" in server.server.metrics.text().decode())


def test_one_who_asks_and_never_reads_is_forgotten_when_its_connection_ends():
    with running(StubPolicy(horizon=60_000)) as server:  # 2 MB an answer
        hostile, _ = dial(server)
        hostile.recv_flow_control.acquire()  # its thread reads no more
        hostile.socket.settimeout(1.0)

        def flood():
            frame = Frame(Opcode.BINARY, pack(own_request())).serialize(mask=True)
            while True:
                hostile.socket.sendall(frame)

        with pytest.raises(TimeoutError):  # the server takes no more, and does not hang up
            flood()
        hostile.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        hostile.recv_flow_control.release()
        hostile.close_socket()
        wait_for(lambda: "pi05_sessions 0.0" in server.server.metrics.text().decode())
        assert server.server.unanswered == 0


@pytest.mark.parametrize(
    ("origin", "host", "may"),
    [
        (None, None, True),
        ("http://127.0.0.1:{port}", None, True),
        ("http://evil.example", None, False),
        ("http://evil.example:{port}", "evil.example:{port}", False),  # a name that leads here
        ("null", None, False),
        ("http://[", None, False),
        ("http://127.0.0.1:1", None, False),
    ],
)
def test_a_page_of_another_site_may_not_ask_a_server_without_keys(origin, host, may):
    with running() as server:
        headers = {"Origin": origin} if origin else {}
        headers |= {"Host": host} if host else {}
        headers = {name: text.format(port=server.port) for name, text in headers.items()}
        if may:
            socket, _ = dial(server, additional_headers=headers)
            with socket:
                assert ask(socket, own_request())["seed"] == 0
        else:
            with pytest.raises(InvalidStatus) as refused:
                dial(server, additional_headers=headers)
            assert refused.value.response.status_code == 403


def test_listening_beyond_this_machine_needs_keys():
    for host in ("0.0.0.0", "::", "192.168.1.5", "robot.local"):
        with pytest.raises(ServingError, match="--keys-file"):
            check_exposure(host, Access())
        check_exposure(host, Access((b"k",)))
    for host in ("127.0.0.1", "127.0.0.9", "::1", "localhost"):
        check_exposure(host, Access())


def test_key_files_are_strict(tmp_path):
    path = tmp_path / "keys"
    path.write_text("# robots\n\n" + "a" * 32 + "\n" + "b" * 20 + "\n")
    path.chmod(0o600)
    assert len(read_keys(path)) == 2
    path.chmod(0o644)
    with pytest.raises(KeyFileError, match="chmod 600"):
        read_keys(path)
    path.chmod(0o600)
    for text, words in (("", "holds no key"), ("short\n", "shorter than 16")):
        path.write_text(text)
        with pytest.raises(KeyFileError, match=words):
            read_keys(path)
    with pytest.raises(KeyFileError, match="No such file"):
        read_keys(tmp_path / "none")


def test_tls():
    data = Path(__file__).parent / "data"  # self-signed, for 127.0.0.1, of no use elsewhere
    cert, key = data / "cert.pem", data / "key.pem"
    with pytest.raises(ServingError, match="both"):
        tls_context(cert, None)
    with pytest.raises(ServingError, match="cannot load"):
        tls_context(key, key)
    with running(tls=tls_context(cert, key)) as server:
        trust = ssl.create_default_context(cafile=str(cert))
        with connect(
            f"wss://127.0.0.1:{server.port}", ssl=trust, compression=None, max_size=None
        ) as socket:
            assert unpack(socket.recv(PATIENCE_S)).value["robot"] == "droid"
            assert ask(socket, own_request())["seed"] == 0


def test_sessions_are_bounded():
    with running(max_sessions=1) as server:
        one, _ = dial(server)
        with one, pytest.raises(InvalidStatus) as refused:
            dial(server)
        assert refused.value.response.status_code == 503
        wait_for(lambda: "pi05_sessions 0.0" in get(server, "/metrics")[1])
        two, _ = dial(server)
        two.close()


def test_draining_answers_what_was_asked_then_closes():
    policy = StubPolicy()
    with running(policy) as server:
        socket, _ = dial(server)
        policy.gate.clear()
        socket.send(pack(own_request()))
        assert policy.begun.acquire(timeout=PATIENCE_S)
        server.stop()
        wait_for(lambda: server.server._draining)
        assert get(server, "/healthz") == (503, "shutting down\n")
        threading.Timer(0.05, policy.gate.set).start()
        assert unpack(socket.recv(PATIENCE_S)).value["seed"] == 0
        with pytest.raises(ConnectionClosed):
            socket.recv(PATIENCE_S)
        server.join()
        assert server.clean


def test_clients_that_vanish_leave_nothing_behind():
    policy = StubPolicy()
    with running(policy) as server:
        policy.gate.clear()
        for number in range(20):
            socket, _ = dial(server)
            socket.send(pack(own_request()))
            if number == 0:
                assert policy.begun.acquire(timeout=PATIENCE_S)
            socket.socket.shutdown(2)
            socket.close()
        half_open = socket_only(server.port)
        half_open.sendall(b"GET / HTTP/1.1\r\n")
        wait_for(lambda: "pi05_sessions 0.0" in get(server, "/metrics")[1])
        policy.gate.set()
        live, _ = dial(server)
        with live:
            assert ask(live, own_request())["seed"] == 0
        half_open.close()
        assert server.server.unanswered == 0


def socket_only(port):
    return socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)


def test_fuzzed_frames_are_each_answered():
    """1,000 here; `make hostile` runs 10,000."""
    random = np.random.default_rng(7)
    good = [pack(own_request(), d) for d in DIALECTS] + [pack(droid_request())]
    with running(max_frame=200_000) as server:
        socket, _ = dial(server)
        with socket:
            for _ in range(1000):
                frame = bytearray(good[random.integers(len(good))])
                for _ in range(random.integers(1, 5)):
                    place = int(random.integers(min(len(frame), 400)))
                    kind = random.integers(3)
                    if kind == 0:
                        frame[place] = int(random.integers(256))
                    elif kind == 1:
                        del frame[place:]
                        break
                    else:
                        frame[place:place] = random.bytes(int(random.integers(1, 9)))
                socket.send(bytes(frame) or b"\0")
                socket.recv(PATIENCE_S)
            assert ask(socket, own_request(seed=9))["seed"] == 9


def test_the_command_serves_the_real_policy_and_ends_on_sigterm(openpi_client):
    process = subprocess.Popen(
        [sys.executable, "-m", "pi05_ros.cli.main", "-v", "serve", "random:tiny", "--robot",
         "droid", "--port", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        line = process.stdout.readline()
        assert line.startswith("serving random:tiny for droid on ws://127.0.0.1:")
        client = openpi_client.websocket_client_policy.WebsocketClientPolicy(
            "127.0.0.1", int(line.rsplit(":", 1)[1])
        )
        answer = client.infer(droid_request())
        assert answer["actions"].shape == (15, 8)
        assert np.isfinite(answer["actions"]).all()
    finally:
        process.terminate()
        _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, errors
    events = [line for line in errors.splitlines() if "session opened" in line]
    assert json.loads(events[0][events[0].index("{") :])["session"] == "s1"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--host", "0.0.0.0"], "--keys-file"),
        (["--cert", "x.pem"], "both --cert and --key"),
        (["--port", "70000"], "--port is 70000"),
    ],
)
def test_the_command_refuses_what_is_unsafe_before_it_loads(words, said, monkeypatch, capsys):
    loads = lambda *_, **__: pytest.fail("it loads")  # noqa: E731
    monkeypatch.setattr(Policy, "load", loads)
    assert main(["serve", "random:tiny", *words]) == 2
    errors = capsys.readouterr().err
    assert said in errors
    assert "Traceback" not in errors
