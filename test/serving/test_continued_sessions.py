"""Chunks that continue each other on a server: per connection, and as in one process."""

import contextlib
import dataclasses

import numpy as np
import pytest
import yaml
from serving_rig import Running, StubPolicy, running
from websockets.sync.client import connect

from pi05_ros.errors import Pi05Error
from pi05_ros.policy import Observation, Policy, load_profile
from pi05_ros.policy.chunking.continuing import ContinuingPolicy
from pi05_ros.policy.errors import PolicyError
from pi05_ros.policy.remote.array_codec import pack, unpack
from pi05_ros.policy.remote.errors import RemoteError
from pi05_ros.policy.remote.remote_options import RemoteOptions
from pi05_ros.policy.remote.remote_policy import RemotePolicy
from pi05_ros.policy.remote.server_facts import read_metadata
from pi05_ros.resources import config_dir
from pi05_ros.runtime.parameters import PolicyParameters
from pi05_ros.runtime.policy_loading import load_policy
from pi05_ros.serving.chunk_rules import ChunkRules
from pi05_ros.serving.fleet.fleet_replica import FleetReplica
from pi05_ros.serving.fleet.ray_fleet import FleetSession
from pi05_ros.serving.metadata import server_metadata
from pi05_ros.serving.requests import parse_request
from pi05_ros.serving.server import PolicyServer, ServerOptions
from pi05_ros.serving.service import policy_server

STEP_S = 10.0  # so long that the delay is one step on any machine
STEP_NS = round(STEP_S * 1e9)
SETTINGS = [("identity", "1"), ("plain", "2"), ("trained", "3")]


@pytest.fixture(scope="module")
def slow_arm(tmp_path_factory):
    """The simulated arm with steps of ten seconds."""
    data = yaml.safe_load((config_dir() / "robots" / "sim_arm.yaml").read_text())
    file = tmp_path_factory.mktemp("robots") / "slow_arm.yaml"
    file.write_text(yaml.safe_dump({**data, "control_hz": 1 / STEP_S}))
    return file


@pytest.fixture(scope="module")
def policy(slow_arm):
    loaded = Policy.load("random:tiny", robot=slow_arm, device="cpu", denoise_steps=2, threads=1)
    yield loaded
    loaded.close()


@contextlib.contextmanager
def served(policy, rules=None, port=0):
    server = Running(StubPolicy(policy.robot))
    server.policy = policy
    server.server = policy_server(policy, ServerOptions(port=port), rules=rules)
    server.start()
    try:
        yield server.port
    finally:
        server.stop()
        server.join()


@contextlib.contextmanager
def session(port):
    with connect(f"ws://127.0.0.1:{port}", compression=None, max_size=None) as socket:
        socket.recv(60)

        def ask(**request):
            socket.send(pack(request))
            answer = socket.recv(60)
            return answer if isinstance(answer, str) else unpack(answer).value

        yield ask


def pictures(seed):
    rng = np.random.default_rng(seed)
    return {role: rng.integers(0, 255, (56, 56, 3), np.uint8) for role in ("base", "wrist")}


def observation(step, seed):
    state = np.random.default_rng(seed).uniform(-1, 1, 7)
    return Observation(pictures(seed), state, "go", stamp_ns=10**9 + round(step * STEP_NS))


def wire(obs, **more):
    return {"images": dict(obs.images), "state": obs.state, "prompt": obs.prompt, **more}


def local_chunks(policy, mode, reuse, moments):
    """What one process answers for (step, seed) pairs, with a delay of one step."""
    continuing = ContinuingPolicy(policy, mode, reuse)
    return [continuing.infer(observation(*m), seed=m[1], delay=1).actions for m in moments]


@pytest.mark.parametrize(("mode", "reuse"), SETTINGS)
def test_two_interleaved_sessions_never_mix_state(policy, mode, reuse):
    one = [(0, 1), (2, 2), (3, 3), (5.5, 4)]
    two = [(0, 11), (1, 12), (4, 13), (5, 14)]
    expected = [local_chunks(policy, mode, reuse, moments) for moments in (one, two)]
    with served(policy) as port, session(port) as first, session(port) as second:
        for number in range(4):
            for ask, moments, chunks in ((first, one, expected[0]), (second, two, expected[1])):
                step, seed = moments[number]
                since = {"steps_since": step - moments[number - 1][0]} if number else {}
                answer = ask(
                    **wire(observation(step, seed), seed=seed, delay_steps=1, **since),
                    chunk_mode=mode,
                    kv_reuse=reuse,
                )
                np.testing.assert_array_equal(answer["actions"], chunks[number])


def test_reset_reconnection_and_another_mode_start_afresh(policy):
    plain = [policy.infer(observation(0, n), seed=n).actions for n in range(5)]
    rules = {"chunk_mode": "identity", "delay_steps": 1}
    with served(policy) as port:
        with session(port) as ask:

            def chunk(seed, **more):
                return ask(**wire(observation(0, seed), seed=seed), **more)["actions"]

            np.testing.assert_array_equal(chunk(0, **rules), plain[0])
            assert not np.allclose(chunk(1, **rules, steps_since=1), plain[1])
            np.testing.assert_array_equal(chunk(2, **rules, reset=True), plain[2])
            assert not np.allclose(chunk(3, **rules, steps_since=1), plain[3])
            assert ask(reset=True)["reset"] is True
            np.testing.assert_array_equal(chunk(4, **rules), plain[4])
            # A pause longer than a chunk, and another mode in between.
            np.testing.assert_array_equal(chunk(1, **rules, steps_since=500), plain[1])
            np.testing.assert_array_equal(chunk(2), plain[2])
            np.testing.assert_array_equal(chunk(3, **rules), plain[3])
        with session(port) as ask:
            answer = ask(**wire(observation(0, 1), seed=1), **rules)
            np.testing.assert_array_equal(answer["actions"], plain[1])


def test_the_server_may_name_the_mode_and_openpi_keys_may_be_continued():
    droid = load_profile("droid")
    rng = np.random.default_rng(0)
    policy = Policy.load("random:tiny", robot="droid", tokenizer="bytes", device="cpu",
                         denoise_steps=2, threads=1)  # fmt: skip
    request = {
        "observation/exterior_image_1_left": rng.integers(0, 255, (56, 56, 3), np.uint8),
        "observation/wrist_image_left": rng.integers(0, 255, (56, 56, 3), np.uint8),
        "observation/joint_position": np.linspace(-0.5, 0.5, 7),
        "observation/gripper_position": np.zeros(1),
        "prompt": "go",
    }
    try:
        with served(policy, ChunkRules("identity")) as port, session(port) as ask:
            free = ask(**request, seed=5, chunk_mode="plain")["actions"]
            ask(**request, seed=4)
            bound = ask(**request, seed=5, steps_since=2, delay_steps=1)["actions"]
            assert bound.shape == free.shape == (policy.info.horizon, len(droid.action_names))
            assert not np.allclose(bound, free)
            assert "needs steps_since or stamp_ns" in ask(**request)
            assert "kv_reuse is not for requests in openpi's keys" in ask(**request, kv_reuse=2)
    finally:
        policy.close()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"chunk_mode": "wild"}, "chunk mode 'wild'; accepted: plain"),
        ({"chunk_mode": 3}, "chunk_mode is 3; accepted: a word"),
        ({"kv_reuse": "0"}, "kv reuse '0'; accepted"),
        ({"kv_reuse": True}, "kv_reuse is True"),
        ({"chunk_mode": "identity", "steps_since": -1}, "steps_since is -1; accepted: 0 to"),
        ({"chunk_mode": "identity", "steps_since": float("nan")}, "steps_since is nan"),
        ({"chunk_mode": "identity", "delay_steps": 0.5}, "delay_steps is 0.5"),
        ({"chunk_mode": "identity", "steps_since": 1, "stamp_ns": 7}, "send one of them"),
    ],
)
def test_what_is_not_accepted_is_named_and_changes_nothing(policy, changes, words):
    with served(policy) as port, session(port) as ask:
        rules = {"chunk_mode": "identity", "delay_steps": 1}
        ask(**wire(observation(0, 1), seed=1), **rules)
        assert words in ask(**{**wire(observation(1, 2), seed=2), **rules, **changes})
        ask(**wire(observation(1, 2), seed=2, **rules, steps_since=1))


def test_chunks_that_stand_alone_are_said_to():
    with running() as server, session(server.port) as ask:
        image = np.zeros((48, 64, 3), np.uint8)
        request = {"images": {"base": image, "wrist": image}, "state": np.zeros(8)}
        assert "chunks of this server stand alone" in ask(**request, kv_reuse=2)
        with pytest.raises(RemoteError, match="the server's chunks stand alone"):
            remote(server.port, chunk_mode="identity")
    request = parse_request({**request, "kv_reuse": 2}, load_profile("droid"))
    with pytest.raises(Pi05Error, match="a fleet does not keep KV caches"):
        FleetSession(None).answer(request)


class Replicas:
    """A deployment of Ray Serve in this process: every request goes to the next replica."""

    def __init__(self, replicas):
        self.replicas, self.dying, self.turn = replicas, 0, 0
        self.infer = self

    def remote(self, *arguments):
        return Replicas.Asked(lambda: self._answer(*arguments))

    def _answer(self, *arguments):
        replica = self.replicas[self.turn % len(self.replicas)]
        self.turn += 1
        answer = replica.infer(*arguments)
        if self.dying:  # after its work, which nobody gets to see
            self.dying -= 1
            raise ConnectionResetError("the replica died")
        return answer

    class Asked:
        def __init__(self, call):
            self.call = call

        def result(self, timeout_s):
            return self.call()


@contextlib.contextmanager
def fleet(handle, robot):
    server = Running(StubPolicy(robot))
    server.server = PolicyServer(
        robot,
        lambda: unpack(handle.replicas[0].describe()).value,
        lambda: FleetSession(handle, lost=(ConnectionResetError,)),
        ServerOptions(port=0),
    )
    server.start()
    try:
        yield server.port
    finally:
        server.stop()
        server.join()


def replica(slow_arm, seed):
    load = {"robot": slow_arm, "device": "cpu", "denoise_steps": 2, "threads": 1}
    return FleetReplica(f"random:tiny:{seed}", load, 2**24, "plain")


@pytest.mark.parametrize("mode", ["identity", "trained"])
def test_a_fleet_continues_chunks_whichever_replica_answers_or_dies(policy, slow_arm, mode):
    moments = [(0, 1), (2, 2), (3, 3), (5.5, 4), (40, 5), (41, 6), (42, 7)]
    other = [(0, 11), (1, 12), (4, 13), (5, 14), (6, 15), (7, 16), (8, 17)]
    expected = [local_chunks(policy, mode, "1", which) for which in (moments, other)]
    handle = Replicas([replica(slow_arm, 0), replica(slow_arm, 0)])
    with fleet(handle, policy.robot) as port, session(port) as first, session(port) as second:
        for number in range(len(moments)):
            for ask, which, chunks in (
                (first, moments, expected[0]),
                (second, other, expected[1]),
            ):
                step, seed = which[number]
                since = {"steps_since": step - which[number - 1][0]} if number else {}
                handle.dying = number % 3
                answer = ask(
                    **wire(observation(step, seed), seed=seed, delay_steps=1, **since),
                    chunk_mode=mode,
                )
                np.testing.assert_array_equal(answer["actions"], chunks[number])
        handle.dying = 100
        assert "4 replicas in a row did not answer: the replica died" in first(
            **wire(observation(43, 8), seed=8, delay_steps=1), steps_since=1, chunk_mode=mode
        )
        handle.dying = 0
        answer = first(
            **wire(observation(43, 8), seed=8, delay_steps=1), steps_since=1, chunk_mode=mode
        )
        chunks = local_chunks(policy, mode, "1", [*moments, (43, 8)])
        np.testing.assert_array_equal(answer["actions"], chunks[-1])


def test_a_chunk_of_another_checkpoint_is_not_continued_and_the_node_s_policy_is_told(
    policy, slow_arm
):
    replicas = [replica(slow_arm, 0), replica(slow_arm, 5)]
    handle = Replicas(replicas[:1])
    rules = {"chunk_mode": "identity", "delay_steps": 1}
    with fleet(handle, policy.robot) as port, session(port) as ask:
        chunks = local_chunks(policy, "identity", "1", [(0, 1), (1, 2)])
        for number, since in ((0, {}), (1, {"steps_since": 1})):
            answer = ask(
                **wire(observation(number, number + 1), seed=number + 1), **rules, **since
            )
            np.testing.assert_array_equal(answer["actions"], chunks[number])
        handle.replicas = replicas[1:]
        new = Policy.load(
            "random:tiny:5", robot=slow_arm, device="cpu", denoise_steps=2, threads=1
        )
        chunks = local_chunks(new, "identity", "1", [(0, 3), (2, 4)])
        new.close()
        for number, seed in ((0, 3), (1, 4)):
            answer = ask(**wire(observation(2 * number, seed), seed=seed), **rules, steps_since=2)
            np.testing.assert_array_equal(answer["actions"], chunks[number])
        with pytest.raises(RemoteError, match="no kv_reuse '2'"):
            remote(port, robot=str(slow_arm), chunk_mode="identity", kv_reuse="2")
        far = remote(port, robot=str(slow_arm), chunk_mode="identity")
        far.infer(observation(0, 1), seed=1)
        far.close()
        assert "stand alone" not in ask(**wire(observation(5, 5), seed=5), chunk_mode="plain")


def remote(port, robot=None, **options):
    return RemotePolicy(
        f"ws://127.0.0.1:{port}", robot=robot, options=RemoteOptions(deadline_s=60.0, **options)
    )


@pytest.mark.parametrize(("mode", "reuse"), SETTINGS)
def test_the_node_s_policy_continues_chunks_on_a_server_as_in_one_process(
    policy, slow_arm, mode, reuse
):
    moments = [(0, 3), (2, 4), (3.25, 5), (4, 6), (40, 7), (41, 8), (39, 9), (40, 10)]
    parameters = PolicyParameters(
        checkpoint="random:tiny", robot=str(slow_arm), denoise_steps=2, chunk_mode=mode,
        kv_reuse=reuse, remote_deadline_s=60.0,
    )  # fmt: skip
    here = load_policy(parameters)
    with served(policy) as port:
        address = f"ws://127.0.0.1:{port}"
        there = load_policy(dataclasses.replace(parameters, checkpoint=address))
        try:
            for node in (here, there):
                node.warm_up()
            for step, seed in moments:
                obs = observation(step, seed)
                want, found = (p.infer(obs, seed=seed) for p in (here, there))
                np.testing.assert_array_equal(found.actions, want.actions)
                assert found.kv_age == want.kv_age
            for node in (here, there):
                node.forget()
            want, found = (p.infer(observation(41, 1), seed=1) for p in (here, there))
            np.testing.assert_array_equal(found.actions, want.actions)
            np.testing.assert_array_equal(
                found.actions, policy.infer(observation(41, 1), seed=1).actions
            )
        finally:
            there.close()
            here.close()


def test_a_new_connection_continues_nothing(policy, slow_arm):
    with served(policy) as port:
        far = remote(port, robot=str(slow_arm), chunk_mode="identity")
        far.infer(observation(0, 1), seed=1)
    try:
        with served(policy, port=port):
            found = None
            while found is None:  # until it has noticed the end of the first server
                with contextlib.suppress(RemoteError):
                    found = far.infer(observation(1, 2), seed=2).actions
            np.testing.assert_array_equal(found, policy.infer(observation(1, 2), seed=2).actions)
    finally:
        far.close()


def test_a_mode_that_the_server_lacks_is_told(policy):
    meta = server_metadata(policy.info, policy.robot, "", 2**20, ("plain", "identity"))
    facts = read_metadata(meta, policy.robot)
    facts.require_continuation("identity")
    with pytest.raises(RemoteError, match="no chunk_mode 'trained'; accepted: plain, identity"):
        facts.require_continuation("trained")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tokenizer": "bytes"}, "tokenizer is decided by the server"),
        ({"precision": "fp32"}, "precision is decided by the server"),
        ({"device": "cpu"}, "device is decided by the server"),
        ({"threads": 1}, "threads is decided by the server"),
        ({"backend_options": {"chunk_mode": "wild"}}, "chunk_mode is 'wild'; accepted: plain"),
    ],
)
def test_what_the_server_decides_is_refused(options, words):
    with pytest.raises(PolicyError, match=words):
        Policy.load("ws://127.0.0.1:1", **options)


def test_horizon_and_rate_hold_for_a_server_too(policy, slow_arm):
    with served(policy) as port:
        address = f"ws://127.0.0.1:{port}"
        options = {"deadline_s": 60.0}
        far = Policy.load(address, robot=slow_arm, horizon=6, backend_options=options)
        chunk = far.infer(observation(0, 1), seed=1)
        far.close()
        assert far.info.horizon == len(chunk.actions) == 6
        with pytest.raises(RemoteError, match="seconds per step are 10"):
            Policy.load(address, robot="sim_arm", backend_options=options)
        far = Policy.load(address, robot="sim_arm", control_hz=0.1, backend_options=options)
        far.close()
