"""Every transition, legal and illegal, through the services of a running node."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from pi05_ros.msg import PolicyStatus
from rclpy.parameter import Parameter
from std_srvs.srv import Trigger

from pi05_ros.ros.policy_parts import runners
from pi05_ros.runtime import inference
from pi05_ros.runtime.worker import Worker

CONFIGURE, CLEANUP, ACTIVATE, DEACTIVATE = 1, 2, 3, 4
SHUTDOWN = {"unconfigured": 5, "inactive": 6, "active": 7}
ROOT = Path(__file__).parents[2]


def go_to(bench, state):
    client = bench.client
    if state in ("inactive", "active"):
        assert client.change_state(CONFIGURE)
    if state == "active":
        assert client.change_state(ACTIVATE)
    if state == "finalized":
        assert client.change_state(SHUTDOWN["unconfigured"])
    assert client.state() == state


LEGAL = {
    ("unconfigured", CONFIGURE): "inactive",
    ("inactive", CLEANUP): "unconfigured",
    ("inactive", ACTIVATE): "active",
    ("active", DEACTIVATE): "inactive",
    ("unconfigured", 5): "finalized",
    ("inactive", 6): "finalized",
    ("active", 7): "finalized",
}


@pytest.mark.parametrize("state", ["unconfigured", "inactive", "active", "finalized"])
def test_illegal_requests_are_answered_false_and_change_nothing(bench, state):
    b = bench()
    go_to(b, state)
    for transition in (CONFIGURE, CLEANUP, ACTIVATE, DEACTIVATE, 5, 6, 7, 99):
        if (state, transition) not in LEGAL:
            assert not b.client.change_state(transition), transition
            assert b.client.state() == state
    unknown = ChangeState.Request(transition=Transition(label="fly"))
    assert not b.client.call(ChangeState, "change_state", unknown).success
    if state == "active":
        b.chunks(2)


@pytest.mark.parametrize(("start", "transition"), list(LEGAL))
def test_legal_transitions(bench, start, transition):
    b = bench()
    go_to(b, start)
    assert b.client.change_state(transition)
    assert b.client.state() == LEGAL[(start, transition)]
    primary = {
        "unconfigured": PolicyStatus.STATE_UNCONFIGURED,
        "inactive": PolicyStatus.STATE_INACTIVE,
        "active": PolicyStatus.STATE_ACTIVE,
        "finalized": PolicyStatus.STATE_FINALIZED,
    }[LEGAL[(start, transition)]]
    assert b.client.until(lambda: b.client.statuses and b.client.statuses[-1].state == primary)


def test_transitions_by_label(bench):
    b = bench()
    for label in ("configure", "activate", "deactivate", "cleanup"):
        request = ChangeState.Request(transition=Transition(label=label))
        assert b.client.call(ChangeState, "change_state", request).success


@pytest.mark.parametrize(
    ("checkpoint", "words"),
    [
        ("", ["checkpoint", "random:tiny"]),
        ("/no/such/checkpoint", ["/no/such/checkpoint", "does not exist"]),
        ("random:huge", ["random:huge", "tiny"]),
    ],
)
def test_wrong_checkpoint_fails_with_one_clear_line(bench, checkpoint, words):
    from pi05_ros.runtime.policy_loading import load_policy

    b = bench({"checkpoint": checkpoint}, factory=load_policy)
    assert not b.client.change_state(CONFIGURE)
    assert b.client.state() == "unconfigured"
    assert b.client.until(lambda: b.client.statuses and b.client.statuses[-1].message)
    message = b.client.statuses[-1].message
    assert all(word in message for word in words), message
    assert "\n" not in message


def test_failed_load_can_be_repaired_and_repeated(bench):
    attempts = []

    def load(parameters):
        attempts.append(parameters)
        if len(attempts) == 1:
            raise RuntimeError("device is busy\nwith a long story")

    b = bench(load=load)
    assert not b.client.change_state(CONFIGURE)
    assert b.client.until(lambda: "device is busy" in b.client.statuses[-1].message)
    assert "story" not in b.client.statuses[-1].message
    b.activate()
    b.chunks(1)
    assert b.client.until(lambda: b.client.statuses[-1].message == "")


def test_unexpected_exception_in_configure_goes_through_on_error(bench):
    def load(parameters):
        raise KeyError("a bug")

    b = bench(load=load)
    assert not b.client.change_state(CONFIGURE)
    assert b.client.state() == "unconfigured"
    assert b.client.until(lambda: "a bug" in b.client.statuses[-1].message)


def test_unknown_camera_role_fails_configure(bench):
    b = bench({"camera_roles": ["base", "ceiling"]})
    assert not b.client.change_state(CONFIGURE)
    assert b.client.until(lambda: "ceiling" in b.client.statuses[-1].message)
    assert "base, wrist" in b.client.statuses[-1].message


def test_nothing_is_published_after_deactivate(bench):
    release = threading.Event()
    b = bench(behave=lambda n, a: release.wait(10) and None, parameters={"stop_timeout_s": 0.1})
    b.activate()
    assert b.client.until(lambda: b.policy.observations, feed=b.feed)
    assert b.client.change_state(DEACTIVATE)
    release.set()
    assert b.client.until(lambda: b.node._statistics.dropped["inactive"] == 1)
    assert not b.client.chunks
    # The next activation is a new identity and works.
    assert b.client.change_state(ACTIVATE)
    b.chunks(2)


def test_deactivate_waits_for_the_inference_in_flight(bench):
    finished = []

    def behave(n, actions):
        time.sleep(0.3)
        finished.append(n)

    b = bench(behave=behave)
    b.activate()
    assert b.client.until(lambda: b.policy.observations, feed=b.feed)
    assert b.client.change_state(DEACTIVATE)
    assert len(finished) == len(b.policy.observations)


def test_cleanup_is_refused_while_an_inference_hangs(bench):
    release = threading.Event()
    b = bench(behave=lambda n, a: release.wait(60) and None, parameters={"stop_timeout_s": 0.05})
    b.activate()
    assert b.client.until(lambda: b.policy.observations, feed=b.feed)
    assert b.client.change_state(DEACTIVATE)
    assert not b.client.change_state(CLEANUP)
    assert b.client.state() == "inactive"
    release.set()
    assert b.client.until(lambda: not b.node._host._workers[0].busy)
    assert b.client.change_state(CLEANUP)
    assert b.policy.closed


def test_policy_id_is_new_per_activation_and_chunk_ids_rise(bench):
    b = bench()
    b.activate()
    first = b.chunks(3)
    assert [c.chunk_id for c in first] == [0, 1, 2]
    assert b.client.change_state(DEACTIVATE)
    assert b.client.change_state(ACTIVATE)
    count = len(b.client.chunks)
    b.chunks(2)
    second = [c for c in b.client.chunks[count:] if c.policy_id != first[0].policy_id]
    assert second[0].chunk_id == 0
    assert len({c.policy_id for c in first}) == 1


def test_buffers_are_emptied_on_activate(bench):
    b = bench()
    assert b.client.change_state(CONFIGURE)
    received = b.node._intake.inputs.sources
    assert b.client.until(lambda: all(s.received for s in received.values()), feed=b.feed)
    assert b.client.change_state(ACTIVATE)
    assert b.client.until(lambda: b.node._statistics.skipped["missing"] > 1)
    assert not b.client.chunks


def test_warm_up_runs_once_and_is_not_in_the_statistics(bench):
    b = bench()
    assert b.client.change_state(CONFIGURE)
    assert b.policy.warm_ups == 1
    assert b.node._statistics.percentiles() == {}


def test_reset_starts_the_seeds_again_and_keeps_counting_chunks(bench):
    b = bench({"seed": 40})
    b.activate()
    assert [c.seed for c in b.chunks(3)] == [40, 41, 42]
    assert b.client.call(Trigger, "reset", Trigger.Request()).success
    count = len(b.client.chunks)
    b.chunks(2)
    after = b.client.chunks[count:]
    assert 40 in [c.seed for c in after]
    ids = [c.chunk_id for c in b.client.chunks]
    assert ids == sorted(set(ids))


def test_after_a_reset_nothing_of_an_inference_that_had_just_begun_is_continued(
    bench, monkeypatch
):
    inside, go = threading.Event(), threading.Event()
    convert = inference.convert

    def slow(job):
        inside.set()
        assert go.wait(60)
        return convert(job)

    monkeypatch.setattr(runners, "WORTH_NS", 10**12)  # or a busy machine prepares ahead
    b = bench({"seed": 40})
    assert b.client.change_state(CONFIGURE)
    calls = []
    prefill = b.policy.prefill
    b.policy.forget = lambda: calls.append("forget")
    monkeypatch.setattr(
        b.policy,
        "prefill",
        lambda *a, seed, **k: calls.append(seed) or prefill(*a, seed=seed, **k),
    )
    assert b.client.change_state(ACTIVATE)
    b.chunks(1)
    assert calls[:2] == ["forget", 40]
    monkeypatch.setattr(inference, "convert", slow)
    assert b.client.until(inside.is_set, feed=b.feed)
    old = b.node._loop._loop._inferences + 39
    calls.clear()
    assert b.client.call(Trigger, "reset", Trigger.Request()).success
    go.set()
    assert b.client.until(lambda: len(calls) >= 4, feed=b.feed)
    assert calls[:4] == [old, "forget", 40, 41]


def test_a_hundred_rounds_leak_nothing(bench):
    b = bench({"rate_hz": 100.0})
    node, process = b.node, psutil.Process()

    def around():
        for trigger in ("configure", "activate", "deactivate", "cleanup"):
            assert getattr(node, f"trigger_{trigger}")().name == "SUCCESS"

    def census():
        gc.collect()
        return (
            threading.active_count(), len(list(node.publishers)), len(list(node.subscriptions)),
            len(list(node.timers)), len(list(node.services)), len(list(node.guards)),
            len(node._managed_entities), len(node._parameters), process.num_fds(),
        )  # fmt: skip

    # Transitions from this thread: the spinning one must not run callbacks meanwhile.
    b.pause()
    for _ in range(5):
        around()
    before, memory = census(), process.memory_info().rss
    for _ in range(100):
        around()
    assert census() == before
    assert process.memory_info().rss - memory < 8e6


def test_loading_is_not_waited_for_when_the_process_ends(bench, monkeypatch):
    loading, release, stop, waits = threading.Event(), threading.Event(), threading.Event(), []
    wait_idle = Worker.wait_idle

    def load(parameters):
        loading.set()
        release.wait(60)

    def wait(worker, timeout_s=None):
        waits.append(timeout_s)
        return wait_idle(worker, timeout_s)

    monkeypatch.setattr(Worker, "wait_idle", wait)
    b = bench(load=load, stop=stop)
    asked = threading.Timer(0.0, lambda: loading.wait(60) and stop.set())
    asked.start()
    assert not b.client.change_state(CONFIGURE)
    assert waits
    assert not any(waits)
    release.set()


# Each process has a namespace of its own: one that was killed is seen for a while.
def start_process(namespace, *parameters):
    arguments = [item for p in parameters for item in ("-p", p)] + ["-r", f"__ns:={namespace}"]
    return subprocess.Popen(
        [sys.executable, "-m", "pi05_ros.ros.policy_node", "--ros-args", *arguments],
        cwd=ROOT, env=dict(os.environ), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


SLOW = """
import sys, time
sys.path.insert(0, {tests!r})
from conftest import ScriptedPolicy
from pi05_ros.ros import process
from pi05_ros.ros.policy_node import PolicyNode

def hang(n, actions):
    time.sleep(600)

def hang_loading(parameters):
    time.sleep(600)

def make(stop):
    return PolicyNode(
        stop=stop,
        policy_factory=lambda p: ScriptedPolicy(p, {behave}, ("base", "wrist"), {load}),
    )

sys.exit(process.run(make))
"""


def start_slow(namespace, behave="None", load="None", overlap=False):
    code = SLOW.format(tests=str(ROOT / "test" / "ros"), behave=behave, load=load)
    return subprocess.Popen(
        [sys.executable, "-c", code, "--ros-args", "-p", "checkpoint:=random:scripted",
         "-p", "rate_hz:=20", "-p", f"overlap:={str(overlap).lower()}",
         "-r", f"__ns:={namespace}"],
        cwd=ROOT,
    )  # fmt: skip


def end(process, number):
    """Exit code after a signal; what hangs in these processes would hang for ten minutes."""
    process.send_signal(number)
    return process.wait(60)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_the_process_cleanly_with_a_last_status(lone_client, number):
    process = start_process(f"/signal_{int(number)}", "checkpoint:=random:tiny")
    try:
        client = lone_client(f"/signal_{int(number)}/pi05_policy")
        assert client.change_state(CONFIGURE)
        assert client.change_state(ACTIVATE)
        assert end(process, number) == 0, process.stdout.read().decode()
        finalized = PolicyStatus.STATE_FINALIZED
        assert client.until(lambda: client.statuses[-1].state == finalized)
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("overlap", [False, True])
def test_sigterm_during_inference(lone_client, messages, overlap):
    namespace = f"/hang_{int(overlap)}"
    process = start_slow(namespace, behave="hang", overlap=overlap)
    try:
        client = lone_client(f"{namespace}/pi05_policy")
        assert client.change_state(CONFIGURE)
        assert client.change_state(ACTIVATE)

        def feed():
            client.send("base_camera/image_raw", messages.picture())
            client.send("wrist_camera/image_raw", messages.picture())
            client.send("joint_states", messages.joints())

        # Overload shows that the first inference hangs.
        assert client.until(lambda: client.value("inference", "skipped_ticks.busy"), 60, feed)
        assert end(process, signal.SIGTERM) == 0
        finalized = PolicyStatus.STATE_FINALIZED
        assert client.until(lambda: client.statuses[-1].state == finalized)
    finally:
        process.kill()
        process.wait()


def test_sigterm_during_configure(lone_client):
    process = start_slow("/load", load="hang_loading")
    try:
        client = lone_client("/load/pi05_policy")
        assert client.state() == "unconfigured"
        service = client.node.create_client(ChangeState, "/load/pi05_policy/change_state")
        assert service.wait_for_service(60)
        service.call_async(ChangeState.Request(transition=Transition(id=CONFIGURE)))
        assert not client.until(lambda: process.poll() is not None, 0.5)
        assert end(process, signal.SIGTERM) == 0
    finally:
        process.kill()
        process.wait()


def test_bad_values_at_start_leave_the_process_alive(lone_client):
    process = start_process(
        "/bad",
        "checkpoint:=random:tiny", "denoise_steps:=50", "rate_hz:=10", "precision.denoise:=int3",
        "backend:=5",
    )  # fmt: skip
    try:
        client = lone_client("/bad/pi05_policy")
        assert not client.change_state(CONFIGURE)
        assert client.state() == "unconfigured"
        assert client.until(lambda: client.statuses and client.statuses[-1].message)
        message = client.statuses[-1].message
        assert "denoise_steps is 50; accepted: 0 to 20" in message
        assert "precision.denoise is 'int3'; accepted: auto, fp32" in message
        assert "backend is 5" in message
        assert "rate_hz" not in message  # 10 is a fine double
        assert end(process, signal.SIGTERM) == 0
    finally:
        process.kill()
        process.wait()


def test_bad_dynamic_value_at_start_is_repaired_by_setting_it(bench):
    b = bench({"denoise_steps": -1})
    assert not b.client.change_state(CONFIGURE)
    assert b.node.set_parameters([Parameter("denoise_steps", value=3)])[0].successful
    assert b.client.change_state(CONFIGURE)


@pytest.mark.parametrize(
    ("module", "words", "said"),
    [
        ("policy_node", ["--log-level", "loud"], "cannot start"),
        ("executor_node", ["-p", "use_sim_time:=1"], "'use_sim_time'"),
    ],
)
def test_arguments_that_rclpy_refuses_are_one_clear_line(module, words, said):
    limits = f"limits_file:={ROOT / 'config' / 'sim_arm_limits.yaml'}"
    command = [sys.executable, "-m", f"pi05_ros.ros.{module}", "--ros-args", "-p", limits]
    done = subprocess.run(
        [*command, *words], cwd=ROOT, capture_output=True, text=True, timeout=180
    )
    assert done.returncode in (1, 2)
    assert said in done.stderr
    assert "Traceback" not in done.stderr
