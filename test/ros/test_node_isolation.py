"""The node with its engine in a process of its own: it outlives the engine and says why."""

import os
import signal

import numpy as np
import pytest

from pi05_ros.runtime.policy_loading import host_policy

PARAMETERS = {
    "checkpoint": "random:tiny", "threads": 1, "denoise_steps": 1, "isolation": "process",
    "engine_restart_s": 0.1, "rate_hz": 5.0,
}  # fmt: skip


@pytest.fixture
def active(bench, messages):
    b = bench(PARAMETERS, factory=host_policy)
    assert b.client.change_state(1, timeout_s=120.0)
    names = list(b.node._host.policy.robot.state_names)

    def feed():
        b.feed(joints=messages.joints(names, np.linspace(-0.5, 0.5, len(names))))

    b.feed_arm = feed
    assert b.client.change_state(3)
    b.chunks(2, timeout_s=60, feed=feed)
    return b


def test_a_killed_engine_is_named_and_chunks_come_again_without_an_activation(active):
    b = active
    identity = b.client.chunks[-1].policy_id
    os.kill(b.node._host.policy.engine_pid, signal.SIGKILL)
    assert b.client.until(lambda: "SIGKILL" in b.client.statuses[-1].message, 30, b.feed_arm)
    assert b.client.until(
        lambda: (
            b.client.latest("inference").level == b"\x02"
            and "SIGKILL" in b.client.latest("inference").message
        ),
        30,
        b.feed_arm,
    )
    b.client.chunks.clear()
    b.chunks(3, timeout_s=120, feed=b.feed_arm)
    assert {chunk.policy_id for chunk in b.client.chunks} == {identity}
    assert b.client.until(lambda: b.client.statuses[-1].message == "", 30, b.feed_arm)
    assert b.client.until(
        lambda: b.client.value("inference", "engine_restarts") == "1", 30, b.feed_arm
    )
    assert b.client.state() == "active"


def test_wrong_parameters_are_refused_with_one_line(bench):
    b = bench({**PARAMETERS, "overlap": True}, factory=host_policy)
    assert not b.client.change_state(1)
    assert b.client.until(lambda: "isolation:=thread" in b.client.statuses[-1].message)
    b = bench(
        {**PARAMETERS, "checkpoint": "random:tiny:x"}, factory=host_policy, namespace="other"
    )
    assert not b.client.change_state(1, timeout_s=120.0)
    assert b.client.until(lambda: "random:tiny:x" in b.client.statuses[-1].message)
