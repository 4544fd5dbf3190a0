"""The engine in a process of its own: same numbers, and faults with real processes."""

import gc
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pi05_ros.policy import Observation, Policy
from pi05_ros.runtime.isolation import engine_process
from pi05_ros.runtime.isolation.channel import Channel
from pi05_ros.runtime.isolation.engine_process import EngineProcess
from pi05_ros.runtime.isolation.errors import EngineFaultError, EngineLostError, IsolationError
from pi05_ros.runtime.isolation.inference_times import InferenceTimes
from pi05_ros.runtime.isolation.isolated_policy import IsolatedPolicy, IsolationOptions
from pi05_ros.runtime.isolation.shared_images import SharedImages, make_file
from pi05_ros.runtime.parameter_specs import to_values
from pi05_ros.runtime.parameters import PolicyParameters

HERE = str(Path(__file__).parent)
PARAMETERS = to_values(
    PolicyParameters.from_values(
        {"checkpoint": "random:tiny", "threads": 1, "denoise_steps": 2, "device": "cpu"}
    )
)
WAIT_S = 120.0
LOSSES = int(os.environ.get("PI05_TEST_LOSSES", "2"))


@pytest.fixture(scope="module")
def reference():
    policy = Policy.load("random:tiny", threads=1, denoise_steps=2, device="cpu")
    yield policy
    policy.close()


@pytest.fixture(scope="module")
def shared(reference):
    sys.path.insert(0, HERE)  # the process finds engine_faults there
    options = IsolationOptions(stalled_s=0.5, timeout_s=60.0, backoff_s=0.1, calm_s=0.0)
    policy = IsolatedPolicy("engine_faults:make", PARAMETERS, reference.robot, options)
    yield policy
    policy.close()
    sys.path.remove(HERE)


@pytest.fixture
def isolated(shared):
    """Serving again after the fault of the test before."""
    assert until(lambda: not shared.problem)
    return shared


def until(condition, timeout_s=WAIT_S):
    end = time.monotonic() + timeout_s
    while time.monotonic() < end and not condition():
        time.sleep(0.01)
    return condition()


def observation(policy, prompt="pick", value=90):
    rng = np.random.default_rng(value)
    images = {
        role: rng.integers(0, 255, (48, 64, 3), dtype=np.uint8)
        for role in policy.robot.camera_roles
    }
    state = np.linspace(-0.5, 0.5, len(policy.robot.state_names))
    return Observation(images=images, state=state, prompt=prompt, stamp_ns=5, age_s=0.01)


def test_answers_are_those_of_the_policy_bit_by_bit(isolated, reference):
    assert isolated.info == reference.info
    assert isolated.robot == reference.robot
    for value in range(4):  # both slots of the ring, twice
        obs = observation(reference, value=value)
        ours = isolated.infer(obs, seed=value, denoise_steps=None)
        theirs = reference.infer(obs, seed=value)
        assert np.array_equal(ours.actions, theirs.actions)
        assert np.array_equal(ours.normalized, theirs.normalized)
        assert (ours.names, ours.units, ours.meanings) == (
            theirs.names, theirs.units, theirs.meanings,
        )  # fmt: skip
        assert (ours.seed, ours.prompt, ours.denoise_steps) == (value, "pick", 2)


def test_a_refused_observation_or_a_bug_costs_one_inference_only(isolated):
    pid = isolated.engine_pid
    with pytest.raises(EngineFaultError, match="a bug"):
        isolated.infer(observation(isolated, "raise"), seed=0)
    missing = Observation(images={}, state=observation(isolated).state, prompt="pick")
    with pytest.raises(EngineFaultError, match="base"):
        isolated.infer(missing, seed=0)
    assert isolated.infer(observation(isolated), seed=1).horizon
    assert isolated.engine_pid == pid
    assert isolated.problem == ""


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("die", "killed by SIGKILL"),
        ("stop", "stands still"),
        ("cuda", "CUDA error"),
        ("memory", "out of memory"),
    ],
)
def test_a_lost_engine_is_named_and_started_again(isolated, word, reason):
    changes = []
    isolated.on_change(lambda: changes.append(isolated.problem))
    pid = isolated.engine_pid
    with pytest.raises((EngineLostError, EngineFaultError), match=reason):
        isolated.infer(observation(isolated, word), seed=0)
    assert until(lambda: any(reason in text for text in changes))
    assert until(lambda: not isolated.problem)
    assert isolated.engine_pid != pid
    assert isolated.infer(observation(isolated), seed=1).horizon
    assert until(lambda: changes[-1] == "")
    isolated.on_change(lambda: None)


def test_the_first_inference_of_a_kind_may_take_longer(isolated):
    isolated.infer(observation(isolated), seed=0)
    told = []
    isolated.on_change(lambda: told.append(isolated.problem))
    isolated.infer(observation(isolated, "slow"), seed=0)  # kernels may be made for it
    isolated.infer(observation(isolated), seed=0)
    assert told == []
    isolated.on_change(lambda: None)


def test_an_inference_that_was_late_and_ended_costs_no_other(isolated, monkeypatch):
    monkeypatch.setattr(InferenceTimes, "hang_s", 0.3)
    told = []
    isolated.on_change(lambda: told.append(isolated.problem))
    isolated.infer(observation(isolated, "slow again"), seed=0)
    monkeypatch.undo()  # on a busy machine the next one may take longer than that too
    assert isolated.infer(observation(isolated), seed=1).horizon  # at once
    assert told == ["the engine process does not answer", ""]
    isolated.on_change(lambda: None)


def test_an_engine_that_is_killed_while_idle_is_noticed(isolated):
    os.kill(isolated.engine_pid, signal.SIGKILL)
    assert until(lambda: "SIGKILL" in isolated.problem)
    assert until(lambda: not isolated.problem)


def test_an_engine_that_was_stopped_for_a_moment_goes_on(isolated):
    pid = isolated.engine_pid
    os.kill(pid, signal.SIGSTOP)
    try:
        assert until(lambda: "stands still" in isolated.problem)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert until(lambda: not isolated.problem)
    assert isolated.infer(observation(isolated), seed=1).horizon


def test_an_inference_that_hangs_ends_at_its_time_limit(reference, isolated):
    del isolated  # the fixture puts engine_faults on the path
    options = IsolationOptions(stalled_s=0.4, timeout_s=5.0, backoff_s=0.1)
    policy = IsolatedPolicy("engine_faults:make", PARAMETERS, reference.robot, options)
    try:
        problems = []
        policy.on_change(lambda: problems.append(policy.problem))
        with pytest.raises(EngineLostError, match="did not answer within"):
            policy.infer(observation(policy, "hang"), seed=0)
        assert "the engine process does not answer" in problems
        assert until(
            lambda: not policy.problem and policy.health().values["engine_restarts"] > "0"
        )
    finally:
        policy.close()


def test_loading_that_fails_is_one_error_and_leaves_no_process(reference, isolated):
    del isolated
    before = children()
    with pytest.raises(EngineFaultError, match="this cannot be loaded"):
        IsolatedPolicy("engine_faults:refuse", PARAMETERS, reference.robot)
    assert children() == before


@pytest.mark.parametrize("lacking", ["socket", "descriptor", "process", "thread", "engine"])
def test_a_start_for_which_something_is_lacking_leaves_nothing(lacking, monkeypatch):
    places = {
        "socket": (socket, "socketpair"),
        "descriptor": (os, "ftruncate"),
        "process": (subprocess, "Popen"),
        "thread": (threading.Thread, "start"),
        "engine": (Channel, "send"),
    }

    def lacks(*_, **__):
        raise RuntimeError(lacking) if lacking == "thread" else OSError(lacking)

    before = resources()
    with monkeypatch.context() as patch:
        patch.setattr(*places[lacking], lacks)
        with pytest.raises((OSError, RuntimeError, EngineLostError)):
            EngineProcess("engine_faults:make", PARAMETERS, 0.4)
    assert until(lambda: resources() == before)


def test_an_engine_that_cannot_map_the_images_says_why():
    ours, theirs = socket.socketpair()
    nothing = os.open(os.devnull, os.O_RDWR)
    numbers = (theirs.fileno(), nothing)
    module = "pi05_ros.runtime.isolation.engine_main"
    process = subprocess.Popen(
        [sys.executable, "-m", module, *map(str, numbers)], pass_fds=numbers
    )
    theirs.close()
    os.close(nothing)
    channel = Channel(ours)
    answer = channel.receive()
    assert process.wait(60) == 1
    channel.close()
    assert answer is not None
    assert (answer["op"], answer["kind"]) == ("error", "OSError")


def test_an_engine_is_started_again_when_threads_are_to_be_had_again(isolated, monkeypatch):
    real, lacking, tried = threading.Thread.start, threading.Event(), []
    lacking.set()

    def start(thread):
        if lacking.is_set() and thread.name == "pi05_engine_reader":
            tried.append(thread)
            raise RuntimeError("can't start new thread")
        real(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    os.kill(isolated.engine_pid, signal.SIGKILL)
    assert until(lambda: len(tried) >= 2 and "can't start new thread" in isolated.problem)
    lacking.clear()
    assert until(lambda: not isolated.problem)
    assert isolated.infer(observation(isolated), seed=0).horizon


def test_an_engine_that_stands_still_while_it_loads_is_given_up(isolated, monkeypatch):
    del isolated
    monkeypatch.setattr(engine_process, "LOADING_STALLED_S", 0.4)
    before = resources()
    engine = EngineProcess("engine_faults:make", PARAMETERS, 0.4)
    os.kill(engine.pid, signal.SIGSTOP)
    try:
        with pytest.raises(EngineLostError, match="stands still"):
            engine.wait_ready(threading.Event())
    finally:
        engine.close()
    assert until(lambda: resources() == before)


def test_nothing_leaks_over_many_losses(isolated):
    def once(number):
        if number % 2:  # out of memory
            with pytest.raises((EngineLostError, EngineFaultError)):
                isolated.infer(observation(isolated, "memory"), seed=0)
        else:
            os.kill(isolated.engine_pid, signal.SIGKILL)
        assert until(lambda: isolated.problem)
        assert until(lambda: not isolated.problem)
        isolated.infer(observation(isolated), seed=0)

    once(0)
    before = resources()
    for number in range(LOSSES):
        once(number)
    assert resources() == before


def resources():
    gc.collect()
    return len(os.listdir("/proc/self/fd")), threading.active_count(), len(children()), shm()


def children():
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split() and sorted(
        task.read_text() for task in Path("/proc/self/task").glob("*/children")
    )


def shm():
    return sum("pi05" in name for name in os.listdir("/dev/shm"))


def test_an_observation_that_does_not_fit_is_refused(isolated):
    obs = observation(isolated)
    huge = np.broadcast_to(np.uint8(0), (20_000, 6_000, 3))
    with pytest.raises(IsolationError, match="MiB"):
        isolated.infer(Observation({"base": huge}, obs.state, "pick"), seed=0)
    assert isolated.infer(obs, seed=0).horizon


def test_shared_images_hold_arrays_of_any_kind():
    descriptor = make_file()
    ours, theirs = SharedImages(descriptor), SharedImages(descriptor)
    os.close(descriptor)
    image = np.arange(24, dtype=np.float32).reshape(3, 2, 4)[:, :, ::2]
    places, state = ours.write(1, {"base": image, "w": image.astype(np.uint8)}, np.arange(3))
    images, values = theirs.read(places, state)
    assert np.array_equal(images["base"], image)
    assert images["w"].dtype == np.uint8
    assert values.tolist() == [0, 1, 2]
    ours.beat()
    assert theirs.beats() == 1
    del images
    ours.close()
    theirs.close()


def test_a_hang_is_noticed_soon_where_inferences_are_short():
    times = InferenceTimes()
    times.add(0.03)
    assert 0.03 < times.late_s <= 0.4
    for _ in range(200):
        times.add(0.009)
    assert times.late_s == pytest.approx(0.259)
    assert times.hang_s == 2.0


def test_one_slow_inference_does_not_hide_hangs_for_ever():
    times = InferenceTimes()
    times.add(5.0)
    assert times.late_s > 5.0
    assert times.hang_s >= 5.0
    for _ in range(200):
        times.add(0.2)
    assert times.late_s == pytest.approx(0.45)
    assert times.hang_s == pytest.approx(4.0)


@given(st.lists(st.floats(1e-4, 100.0), min_size=1, max_size=300))
def test_no_more_than_one_in_a_hundred_like_the_newest_is_late(durations):
    times = InferenceTimes()
    for seconds in durations:
        times.add(seconds)
    newest = durations[-200:]
    assert sum(seconds > times.late_s for seconds in newest) <= len(newest) / 100
    assert times.hang_s > times.late_s
