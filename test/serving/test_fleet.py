"""A fleet on a Ray cluster of this machine: replicas die and change, every robot is answered."""

import contextlib
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from serving_rig import Running, StubPolicy
from websockets.sync.client import connect

from pi05_ros.policy import Observation, Policy, load_profile
from pi05_ros.policy.chunking.continuing import ContinuingPolicy
from pi05_ros.policy.remote.array_codec import pack, unpack
from pi05_ros.serving.errors import ServingError
from pi05_ros.serving.fleet.ray_fleet import (
    APPLICATION,
    DEPLOYMENT,
    FleetOptions,
    deploy,
    fleet_server,
    join_cluster,
)
from pi05_ros.serving.server import ServerOptions

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
ROBOTS = int(os.environ.get("PI05_FLEET_ROBOTS", "6"))
REPLICAS = int(os.environ.get("PI05_FLEET_REPLICAS", "2"))
SECONDS = float(os.environ.get("PI05_FLEET_SECONDS", "0"))
DEADLINE_S = float(os.environ.get("PI05_FLEET_DEADLINE_S", "10"))
RATE_HZ = float(os.environ.get("PI05_FLEET_HZ", "0"))  # 0: without pause
REPORT = os.environ.get("PI05_FLEET_REPORT")
LOAD = {"robot": "droid", "tokenizer": "bytes", "device": "cpu", "denoise_steps": 1, "threads": 1}
DROID = load_profile("droid")
MAX_FRAME = 2**20
MODES = ("plain", "identity", "trained")


def request(seed):
    rng = np.random.default_rng(5)
    images = {
        role: rng.integers(0, 256, (48, 64, 3), dtype=np.uint8) for role in ("base", "wrist")
    }
    return {"images": images, "state": np.linspace(-0.5, 0.5, 8), "prompt": "pick", "seed": seed}


class OneServer:
    """What one server would answer, whose checkpoint changes as the fleet's does."""

    def __init__(self, *checkpoints):
        self.policies = [Policy.load(checkpoint, **LOAD) for checkpoint in checkpoints]
        self.by_hash = {policy.info.checkpoint_hash: policy for policy in self.policies}
        value = request(0)
        self.images, self.state = value["images"], value["state"]

    def chunks(self, mode, asked):
        """Actions for (seed, checkpoint hash) pairs, one control step after the other."""
        makers = {h: ContinuingPolicy(p, mode) for h, p in self.by_hash.items()}
        before = None
        for number, (seed, found) in enumerate(asked):
            if found != before:  # another model's chunk is not continued
                makers[found].forget()
            before = found
            stamp_ns = 10**9 + number * round(DROID.step_s * 1e9)
            obs = Observation(self.images, self.state, "pick", stamp_ns=stamp_ns)
            yield makers[found].infer(obs, seed=seed, delay=1).actions

    def close(self):
        for policy in self.policies:
            policy.close()


@pytest.fixture(scope="module")
def cluster():
    ray = pytest.importorskip("ray", reason="`make test-fleet` installs Ray")
    from ray import serve

    join_cluster("")
    yield ray
    serve.shutdown()
    ray.shutdown()


def actor_names(ray):
    from ray.util import list_named_actors

    return [a["name"] for a in list_named_actors(all_namespaces=True) if DEPLOYMENT in a["name"]]


class FleetRobot(threading.Thread):
    """Asks until told to stop; remembers every answer. Its chunks continue each other, or not."""

    def __init__(self, port, stop, mode):
        super().__init__(daemon=True)
        self.port, self.stop_event, self.mode = port, stop, mode
        self.answers, self.errors, self.asked, self.took_s = [], [], 0, []

    def run(self):
        with connect(f"ws://127.0.0.1:{self.port}", compression=None, max_size=None) as ws:
            ws.recv(60)
            while not self.stop_event.is_set():
                seed = self.asked % 4
                self.asked += 1
                began = time.monotonic()
                since = {"steps_since": 1} if self.answers else {}
                ws.send(pack(request(seed) | since | {"chunk_mode": self.mode, "delay_steps": 1}))
                answer = ws.recv(120)
                self.took_s.append(time.monotonic() - began)
                if isinstance(answer, str):
                    self.errors.append(answer)
                else:
                    value = unpack(answer).value
                    self.answers.append((seed, value["checkpoint_hash"], value["actions"]))
                if RATE_HZ:
                    self.stop_event.wait(max(0.0, began + 1 / RATE_HZ - time.monotonic()))


def test_a_killed_replica_and_a_new_checkpoint_cost_no_answer(cluster):
    options = FleetOptions(replicas=REPLICAS, cpus=0.1, load=LOAD)
    handle = deploy("random:tiny:1", options, MAX_FRAME)
    front = Running(StubPolicy(DROID))
    front.server = fleet_server(
        handle, ServerOptions(port=0, max_frame=MAX_FRAME, workers=2 * REPLICAS), "droid"
    )
    front.start()
    stop = threading.Event()
    robots = [FleetRobot(front.port, stop, MODES[n % len(MODES)]) for n in range(ROBOTS)]
    try:
        for robot in robots:
            robot.start()
        answered = lambda: sum(len(robot.answers) for robot in robots)  # noqa: E731
        until(lambda: answered() > 4 * ROBOTS)
        time.sleep(SECONDS / 2)

        victim = actor_names(cluster)[0]
        cluster.kill(cluster.get_actor(victim, namespace="serve"), no_restart=True)
        before = answered()
        until(lambda: answered() > before + 4 * ROBOTS)

        deploy("random:tiny:2", options, MAX_FRAME)
        before = answered()
        until(lambda: answered() > before + 4 * ROBOTS)
        time.sleep(SECONDS / 2)
    finally:
        stop.set()
        for robot in robots:
            robot.join(120)
        front.stop()
        front.join()
    if REPORT:
        Path(REPORT).write_text(figures(robots), "utf-8")
    assert not any(robot.errors for robot in robots), [r.errors[:2] for r in robots]
    assert all(robot.asked == len(robot.answers) for robot in robots)
    one = OneServer("random:tiny:1", "random:tiny:2")
    for robot in robots:
        asked = [(seed, found) for seed, found, _ in robot.answers]
        assert {found for _, found in asked} <= set(one.by_hash)
        assert (asked[0][1], asked[-1][1]) == tuple(one.by_hash)
        for answer, right in zip(robot.answers, one.chunks(robot.mode, asked), strict=True):
            np.testing.assert_array_equal(answer[2], right)
    one.close()
    from ray import serve

    assert serve.status().applications[APPLICATION].status == "RUNNING"


def figures(robots):
    """One line for people; what a deadline means depends on the machine, so none is asserted."""
    took = np.concatenate([robot.took_s for robot in robots])
    missed = [sum(s > DEADLINE_S for s in robot.took_s) for robot in robots]
    p50, p99 = np.percentile(took, [50, 99])
    return (
        f"{len(robots)} robots, {REPLICAS} replicas: {len(took)} requests, p50 {p50:.2f} s, p99 "
        f"{p99:.2f} s, longest {took.max():.2f} s; later than {DEADLINE_S:g} s: {sum(missed)}, at "
        f"most {max(missed)} of one robot; errors {sum(len(r.errors) for r in robots)}\n"
    )


def until(condition, seconds=240.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_replicas_that_cannot_load_are_told_and_the_running_ones_stay(cluster):
    with contextlib.suppress(ServingError):
        deploy("/no/such/checkpoint", FleetOptions(cpus=0.1, load=LOAD), MAX_FRAME)
        raise AssertionError("a fleet without a checkpoint started")


@pytest.mark.parametrize(
    "options", [{"replicas": 0}, {"replicas": 3, "max_replicas": 2}, {"gpus": -1}]
)
def test_wrong_options_are_named(options):
    with pytest.raises(ServingError, match="accepted"):
        FleetOptions(**options)
