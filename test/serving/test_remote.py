"""A policy on another machine: same numbers, and no chunk from a server that misbehaves."""

import contextlib
import socket
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving_rig import StubPolicy, running, wait_for
from websockets.sync.server import serve

from pi05_ros.policy import Observation, Policy, PolicyError, load_profile
from pi05_ros.policy.remote.array_codec import pack, unpack
from pi05_ros.policy.remote.errors import RemoteError
from pi05_ros.policy.remote.remote_options import RemoteOptions
from pi05_ros.policy.remote.remote_policy import RemotePolicy
from pi05_ros.policy.remote.server_facts import read_metadata
from pi05_ros.serving.server import ServerOptions
from pi05_ros.serving.service import policy_server

DROID = load_profile("droid")
FAST = {"deadline_s": 20.0}


def observation(robot=DROID, size=(48, 64)):
    rng = np.random.default_rng(0)
    images = {
        role: rng.integers(0, 256, (*size, 3), dtype=np.uint8) for role in robot.camera_roles
    }
    return Observation(images, np.linspace(-0.5, 0.5, len(robot.state_names)), "pick it up")


def remote(port, **options):
    robot = options.pop("robot", None)
    return RemotePolicy(
        f"ws://127.0.0.1:{port}", robot=robot, options=RemoteOptions(**{**FAST, **options})
    )


@contextlib.contextmanager
def served(robot):
    """The real server around the real policy."""
    from serving_rig import Running

    policy = Policy.load("random:tiny", robot=robot, tokenizer="bytes", device="cpu")
    server = Running(StubPolicy(policy.robot))
    server.policy = policy
    server.server = policy_server(policy, ServerOptions(port=0))
    server.start()
    try:
        yield policy, server.port
    finally:
        server.stop()
        server.join()
        policy.close()


@pytest.mark.parametrize("robot", ["droid", "libero", "aloha"])
def test_the_same_chunk_as_in_process(robot):
    with served(robot) as (policy, port):
        far = Policy.load(f"ws://127.0.0.1:{port}", backend_options=FAST)
        try:
            obs = observation(policy.robot)
            here = policy.infer(obs, seed=3)
            there = far.infer(obs, seed=3)
            np.testing.assert_array_equal(there.actions, here.actions)
            assert (there.names, there.units, there.meanings) == (
                here.names, here.units, here.meanings,
            )  # fmt: skip
            assert far.info.checkpoint_hash == policy.info.checkpoint_hash
            assert far.info.random_weights
            assert far.info.backend == "remote"
            assert far.warm_up() > 0
            assert not far.health().warning
            assert float(far.health().values["round_trip_ms"]) > 0
        finally:
            far.close()


def test_images_may_be_shrunk_and_compressed():
    with running() as server:
        far = remote(server.port, jpeg_quality=90, resize=True)
        far.infer(observation(size=(480, 640)))
        far.close()
        (obs, _, _) = server.policy.seen[0]
        assert obs.images["base"].shape == (224, 224, 3)


class OpenpiStub:
    """Policy of openpi's own server: fractions of the top speed, as DROID is trained."""

    def infer(self, obs):
        assert obs["observation/joint_position"].shape == (7,)
        assert obs["observation/gripper_position"].shape == (1,)
        assert obs["observation/exterior_image_1_left"].shape == (48, 64, 3)
        return {"actions": np.full((15, 8), 0.75)}


def test_the_real_openpi_server(openpi_client):
    import asyncio

    from openpi_server import WebsocketPolicyServer

    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    server = WebsocketPolicyServer(OpenpiStub(), "127.0.0.1", port)
    loop = asyncio.new_event_loop()
    task = loop.create_task(server.run())

    def run():
        with contextlib.suppress(asyncio.CancelledError):
            loop.run_until_complete(task)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        far = remote(port, robot="droid", connect_attempts=20)  # the server has just been started
        with pytest.raises(RemoteError, match="does not say which robot"):
            remote(port, connect_attempts=1)
        chunk = far.infer(observation())
        np.testing.assert_allclose(chunk.actions[:, :7], 3.0 * 0.75, rtol=1e-6)
        assert (chunk.actions[:, 7] == 1.0).all()
        assert any("does not describe its actions" in text for text in far.info.assumptions)
        far.close()
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join(20)


def test_a_model_for_another_robot_is_refused():
    with running() as server:
        with pytest.raises(
            RemoteError, match="disagrees with robot profile 'libero': action names"
        ):
            remote(server.port, robot="libero")
        with pytest.raises(RemoteError, match="refused"):
            remote(1, connect_attempts=1)


@contextlib.contextmanager
def scripted(handler):
    """A server whose connections are handled by ``handler(websocket, number)``."""
    count = iter(range(10**6))
    with serve(
        lambda ws: handler(ws, next(count)), "127.0.0.1", 0, compression=None, max_size=None
    ) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.socket.getsockname()[1]
        finally:
            server.shutdown()
            thread.join(20)


def droid_metadata(**changes):
    with running() as server:
        from websockets.sync.client import connect

        with connect(f"ws://127.0.0.1:{server.port}") as ws:
            return {**unpack(ws.recv(20)).value, **changes}


META = droid_metadata()


def good_answer(request):
    actions = np.full((4, 8), 0.5, np.float32)
    return {"actions": actions, "names": list(DROID.action_names), "server_timing": {}}


def garbage(kind):
    actions = np.zeros((4, 8), np.float32)
    names = list(DROID.action_names)
    return {
        "not msgpack": b"\xc1",
        "not a map": pack([1]),
        "no actions": pack({"x": 1}),
        "nan": pack({"actions": np.full((4, 8), np.nan), "names": names}),
        "infinite": pack({"actions": np.full((4, 8), np.inf), "names": names}),
        "columns": pack({"actions": np.zeros((4, 7), np.float32), "names": names}),
        "steps": pack({"actions": np.zeros((99, 8), np.float32), "names": names}),
        "no steps": pack({"actions": np.zeros((0, 8), np.float32), "names": names}),
        "integers": pack({"actions": np.zeros((4, 8), np.int64), "names": names}),
        "one dimension": pack({"actions": np.zeros(32, np.float32), "names": names}),
        "other names": pack({"actions": actions, "names": names[::-1]}),
        "no names": pack({"actions": actions}),
        "names as an array": pack({"actions": actions, "names": np.zeros(3)}),
        "a name as an array": pack({"actions": actions, "names": [*names[:-1], np.zeros(3)]}),
        "an error": "no such thing",
    }[kind]


@pytest.mark.parametrize(
    "kind",
    ["not msgpack", "not a map", "no actions", "nan", "infinite", "columns", "steps", "no steps",
     "integers", "one dimension", "other names", "no names", "names as an array",
     "a name as an array", "an error"],
)  # fmt: skip
def test_garbage_gives_no_chunk_and_the_next_good_answer_one(kind):
    asked = iter(range(10**6))

    def handler(ws, number):
        ws.send(pack(META))
        for frame in ws:
            ws.send(garbage(kind) if next(asked) == 0 else pack(good_answer(frame)))

    with scripted(handler) as port:
        far = remote(port)
        try:
            with pytest.raises(RemoteError, match="answer"):
                far.infer(observation())
            wait_for(lambda: not far.health().warning)
            assert far.infer(observation()).actions.shape == (4, 8)
        finally:
            far.close()


def test_what_an_answer_says_beside_its_actions_is_taken_only_if_it_is_a_number():
    wild = {"kv_age": [], "denoise_steps": {}, "timings": np.zeros(3), "server_timing": [1]}

    def handler(ws, number):
        ws.send(pack(META))
        for frame in ws:
            ws.send(pack({**good_answer(frame), **wild}))

    with scripted(handler) as port:
        far = remote(port)
        try:
            chunk = far.infer(observation())
            assert (chunk.kv_age, chunk.denoise_steps) == (0, 10)
        finally:
            far.close()


@pytest.mark.parametrize(("command_delay_s", "further"), [(0.0, 0), (0.2, 3)])
def test_what_the_executor_has_under_way_is_tied_too(command_delay_s, further):
    asked = []

    def handler(ws, number):
        ws.send(pack({**META, "chunk_modes": ["plain", "identity"]}))
        for frame in ws:
            asked.append(unpack(frame).value["delay_steps"])
            ws.send(pack(good_answer(frame)))

    with scripted(handler) as port:
        far = remote(port, chunk_mode="identity", command_delay_s=command_delay_s)
        try:
            far.infer(observation())  # no inference was timed before
            assert asked == [further]  # at 15 Hz
        finally:
            far.close()


@pytest.mark.parametrize(
    ("mode", "asked"), [("plain", [None, None]), ("identity", [True, False, True])]
)
def test_warming_up_also_continues_a_chunk_where_chunks_do_that(mode, asked):
    requests = []

    def handler(ws, number):
        ws.send(pack({**META, "chunk_modes": ["plain", "identity"]}))
        for frame in ws:
            requests.append(unpack(frame).value)
            ws.send(pack(good_answer(frame)))

    with scripted(handler) as port:
        far = remote(port, chunk_mode=mode)
        try:
            assert far.warm_up() > 0
            far.infer(observation())
            assert [request.get("reset") for request in requests] == asked
            assert [request["deadline_ms"] for request in requests] == [
                *[30e3] * (len(asked) - 1), 20e3
            ]  # fmt: skip
        finally:
            far.close()


def test_a_reset_during_a_request_holds_for_the_next_one():
    arrived, go, resets = threading.Event(), threading.Event(), []

    def handler(ws, number):
        ws.send(pack({**META, "chunk_modes": ["plain", "identity"]}))
        for frame in ws:
            resets.append(unpack(frame).value["reset"])
            arrived.set()
            assert go.wait(60)
            ws.send("no" if len(resets) == 4 else pack(good_answer(frame)))

    with scripted(handler) as port:
        far = remote(port, chunk_mode="identity", deadline_s=60.0)
        try:
            far.forget()
            thread = threading.Thread(target=far.infer, args=(observation(),))
            thread.start()
            assert arrived.wait(60)
            far.forget()
            go.set()
            thread.join(60)
            far.infer(observation())
            far.infer(observation())
            far.forget()
            with pytest.raises(RemoteError, match="no"):
                far.infer(observation())
            far.infer(observation())
            assert resets == [True, True, False, True, True]
        finally:
            go.set()
            far.close()


@pytest.mark.parametrize(
    ("name", "value"),
    [("horizon", "4"), ("horizon", 0), ("horizon", float("nan")), ("denoise_steps", -1),
     ("random_weights", 0), ("device", "x" * 10_000), ("assumptions", np.zeros(0)),
     ("chunk_modes", [1]), ("checkpoint_hash", np.zeros(2))],
)  # fmt: skip
def test_metadata_of_our_server_that_cannot_be_used_are_refused(name, value):
    with pytest.raises(RemoteError, match=name):
        read_metadata({**META, name: value}, None)
    other = {key: META[key] for key in ("horizon", "device")} | {"server": "x", name: value}
    said = read_metadata(other, DROID).info("ws://x")  # another server's mean something else
    assert said.denoise_steps == 0
    assert isinstance(said.horizon, int)


def test_a_server_that_does_not_say_whether_its_weights_are_random_is_refused():
    with pytest.raises(RemoteError, match="random_weights"):
        read_metadata({k: v for k, v in META.items() if k != "random_weights"}, None)


@settings(max_examples=200, deadline=None)
@given(
    field=st.sampled_from(sorted(META)),
    inner=st.sampled_from(["names", "meanings", "units", "vision", "pose_groups", None]),
    value=st.sampled_from(
        [None, -1, 2**63, float("inf"), "", "x" * 1000, b"x", [], [[1]], {}, {1: 2}, np.zeros(3),
         [np.zeros(2)] * 8, np.zeros((2, 2)), np.float32(1), [None] * 8]
    ),
)  # fmt: skip
def test_any_metadata_are_read_or_refused(field, inner, value):
    meta = dict(META)
    meta[field] = (
        {**meta[field], inner: value} if inner and isinstance(meta[field], dict) else value
    )
    with contextlib.suppress(RemoteError):
        facts = read_metadata(meta, DROID)
        facts.info("ws://x")
        facts.require_continuation("identity")


@pytest.mark.parametrize("phase", ["handshake", "metadata", "request", "answer"])
def test_a_server_that_dies_in_any_phase_is_used_again_when_it_is_back(phase):
    def handler(ws, number):
        if number == 1 and phase in ("handshake", "metadata"):
            if phase == "metadata":
                ws.send(pack(META)[:-5])
            ws.socket.shutdown(socket.SHUT_RDWR)
            return
        ws.send(pack(META))
        for frame in ws:
            if number == 0:
                if phase == "answer":
                    ws.socket.sendall(b"\x82\x7e\x10\x00half an answer")
                ws.socket.shutdown(socket.SHUT_RDWR)
                return
            ws.send(pack(good_answer(frame)))

    with scripted(handler) as port:
        far = remote(port)
        try:
            with pytest.raises(RemoteError, match="connection"):
                far.infer(observation())
            wait_for(lambda: not far.health().warning)
            assert far.infer(observation()).actions.shape == (4, 8)
        finally:
            far.close()


def test_a_late_answer_is_not_taken_for_the_next_one():
    held = threading.Event()

    def handler(ws, number):
        ws.send(pack(META))
        for frame in ws:
            if number == 0:
                held.wait(20)
            answer = good_answer(frame)
            answer["actions"] = np.full((4, 8), float(number), np.float32)
            ws.send(pack(answer))

    with scripted(handler) as port:
        far = remote(port, deadline_s=0.2)
        try:
            with pytest.raises(RemoteError, match="no answer within 200 ms"):
                far.infer(observation())
            held.set()
            wait_for(lambda: not far.health().warning)
            chunk = None
            while chunk is None:  # a slow machine may be late again
                with contextlib.suppress(RemoteError):
                    chunk = far.infer(observation())
            assert (chunk.actions > 0).all()
        finally:
            held.set()
            far.close()


def test_another_model_at_the_same_address_is_refused():
    def handler(ws, number):
        ws.send(pack(META if number == 0 else {**META, "checkpoint_hash": "sha256:other"}))
        for frame in ws:
            if number == 0:
                ws.socket.shutdown(socket.SHUT_RDWR)
                return
            ws.send(pack(good_answer(frame)))

    with scripted(handler) as port:
        far = remote(port)
        try:
            with pytest.raises(RemoteError):
                far.infer(observation())
            wait_for(lambda: "another model" in far.health().warning)
            with pytest.raises(RemoteError, match="another model"):
                far.infer(observation())
        finally:
            far.close()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"checkpoint": "random:tiny", "backend": "remote"}, "needs the address"),
        ({"checkpoint": "ws://127.0.0.1:1", "backend": "cuda"}, "cannot be chosen"),
        ({"checkpoint": "ws://127.0.0.1:1", "backend_options": {"quality": 3}}, "no option 'qual"),
        ({"checkpoint": "ws://127.0.0.1:1", "backend_options": {"jpeg_quality": 99}}, "0 \\(off"),
        ({"checkpoint": "ws://127.0.0.1:1", "backend_options": {"deadline_s": 0}}, "deadline_s"),
    ],
)
def test_wrong_options_are_named(arguments, words):
    with pytest.raises(PolicyError, match=words):
        Policy.load(**arguments)
