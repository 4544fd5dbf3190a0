"""What ends an engine process with a CUDA engine costs the process only, over and over.

PI05_TEST_LOSSES (4) losses in turn: a kernel that traps, SIGKILL, SIGSTOP, no memory. Each line
that is printed (`pytest -s`) says when the loss was noticed and when the same answer came again.
"""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from pi05_ros.policy import Observation
from pi05_ros.policy.robots.profile_yaml import load_profile
from pi05_ros.runtime.isolation.errors import EngineFaultError, EngineLostError
from pi05_ros.runtime.isolation.isolated_policy import IsolatedPolicy, IsolationOptions
from pi05_ros.runtime.parameter_specs import to_values
from pi05_ros.runtime.parameters import PolicyParameters

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
LOSSES = int(os.environ.get("PI05_TEST_LOSSES", "4"))
FAULTS = ("trap", "kill", "stop", "memory")


@pytest.fixture
def policy(monkeypatch: pytest.MonkeyPatch) -> Iterator[IsolatedPolicy]:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "runtime"))
    chosen = {"checkpoint": "random:pi05", "tokenizer": "bytes", "robot": "droid"}
    parameters = PolicyParameters.from_values(chosen | {"device": "cuda", "backend": "cuda"})
    made = IsolatedPolicy(
        "engine_faults:make",
        to_values(parameters),
        load_profile("droid"),
        IsolationOptions(backoff_s=0.1, calm_s=0.0),
    )
    yield made
    made.close()


def infer(policy: IsolatedPolicy, prompt: str) -> np.ndarray:
    """Actions for a gray image on every camera, in the robot's units."""
    images = {role: np.full((48, 64, 3), 90, np.uint8) for role in policy.robot.camera_roles}
    state = np.zeros(len(policy.robot.state_names))
    return policy.infer(Observation(images, state, prompt), seed=1).actions


def once(policy: IsolatedPolicy, fault: str) -> float:
    """Lose the engine process once; seconds until the policy said so."""
    start = time.monotonic()
    if fault == "kill":
        os.kill(policy.engine_pid, signal.SIGKILL)
    else:
        with pytest.raises((EngineFaultError, EngineLostError)) as error:
            infer(policy, fault)
        if fault == "trap":
            assert any(word in str(error.value) for word in ("CUDA", "device-side", "Accel"))
    wait_for(lambda: policy.problem)
    return time.monotonic() - start


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def resources() -> tuple[int, int, int, int]:
    """Descriptors, threads, children and shared memory segments of this process."""
    gc.collect()
    children = [path.read_text().split() for path in Path("/proc/self/task").glob("*/children")]
    return (
        len(os.listdir("/proc/self/fd")),
        threading.active_count(),
        sum(map(len, children)),
        sum("pi05" in name for name in os.listdir("/dev/shm")),
    )


def test_an_engine_process_may_be_lost_in_every_way_and_often(policy: IsolatedPolicy) -> None:
    expected = infer(policy, "pick")
    before = None
    for number in range(LOSSES):
        fault, pid, start = FAULTS[number % len(FAULTS)], policy.engine_pid, time.monotonic()
        noticed = once(policy, fault)
        wait_for(lambda: not policy.problem)
        assert policy.engine_pid != pid
        assert np.array_equal(infer(policy, "pick"), expected)
        found = resources()
        before = before or found
        print(
            f"{fault}: noticed {noticed:.2f} s, serves {time.monotonic() - start:.1f} s, {found}"
        )
        assert found == before
