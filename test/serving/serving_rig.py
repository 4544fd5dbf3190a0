"""A policy server in a thread of the test, with a policy that computes nothing."""

import asyncio
import contextlib
import threading
import time

import numpy as np

from pi05_ros.backends import Precision
from pi05_ros.policy import ActionChunk, load_profile
from pi05_ros.policy.interface import PolicyInfo
from pi05_ros.serving.metadata import server_metadata
from pi05_ros.serving.server import PolicyServer, ServerOptions
from pi05_ros.serving.session import Session

DROID = load_profile("droid")


class StubPolicy:
    """Actions are the seed; waits until it may answer."""

    def __init__(self, robot=DROID, horizon=4):
        self.robot = robot
        self.horizon = horizon
        self.gate = threading.Event()
        self.gate.set()
        self.begun = threading.Semaphore(0)
        self.seen = []
        self.fail = None
        self.info = PolicyInfo(
            "stub", "sha256:0", False, robot.name, "eager", "", "cpu", Precision(), 10, horizon,
            robot.step_s, robot.action_names, robot.camera_roles, robot.state_names, "bytes",
        )  # fmt: skip

    def infer(self, obs, *, seed=None, denoise_steps=None):
        self.seen.append((obs, seed, denoise_steps))
        self.begun.release()
        self.gate.wait(20)
        if self.fail:
            raise self.fail
        actions = np.full((self.horizon, len(self.robot.action_names)), float(seed), np.float32)
        return ActionChunk(
            actions, actions, self.robot.action_names, self.robot.action_meanings,
            self.robot.command_units, self.robot.step_s, obs.prompt or "", seed,
            denoise_steps or 10,
        )  # fmt: skip

    def warm_up(self):
        return None

    def close(self):
        return None


class Running:
    """A server in its own thread and loop."""

    def __init__(self, policy, **options):
        self.policy = policy
        self.options = ServerOptions(**{"port": 0, **options})
        self.server = PolicyServer(
            policy.robot,
            lambda: server_metadata(policy.info, policy.robot, "sha256:1", self.options.max_frame),
            lambda: Session(policy),
            self.options,
        )
        self._ready = threading.Event()
        self._loop = None
        self._stop = None
        self.clean = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    async def _run(self):
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self.clean = await self.server.run(self._stop, lambda port: self._ready.set())

    def start(self):
        self._thread.start()
        assert self._ready.wait(20)
        return self

    def stop(self):
        with contextlib.suppress(RuntimeError):  # it has ended already
            self._loop.call_soon_threadsafe(self._stop.set)

    def join(self):
        self._thread.join(30)
        assert not self._thread.is_alive()

    @property
    def port(self):
        return self.server.port


@contextlib.contextmanager
def running(policy=None, **options):
    server = Running(policy or StubPolicy(), **options).start()
    try:
        yield server
    finally:
        server.policy.gate.set()
        server.stop()
        server.join()


def wait_for(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen"
        time.sleep(0.005)


def droid_request(**more):
    image = np.zeros((48, 64, 3), np.uint8)
    return {
        "observation/exterior_image_1_left": image,
        "observation/wrist_image_left": image,
        "observation/joint_position": np.zeros(7),
        "observation/gripper_position": np.zeros(1),
        "prompt": "pick up the block",
        **more,
    }


def own_request(**more):
    image = np.zeros((48, 64, 3), np.uint8)
    return {"images": {"base": image, "wrist": image}, "state": np.zeros(8), **more}
