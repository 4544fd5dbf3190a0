"""The node with its policy on a server: chunks, then none while the server is away, then again."""

import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus

from pi05_ros.runtime.parameters import ParameterError, PolicyParameters
from pi05_ros.runtime.policy_loading import load_policy

CONFIGURE, ACTIVATE = 1, 3
ARM = (*(f"joint{i}" for i in range(1, 7)), "gripper")


def start_server(port=0):
    process = subprocess.Popen(
        [sys.executable, "-m", "pi05_ros.cli.main", "serve", "random:tiny", "--robot", "sim_arm",
         "--tokenizer", "bytes", "--port", str(port)],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    line = process.stdout.readline()
    return process, int(re.search(r":(\d+)$", line)[1])


def test_the_server_goes_and_comes_back(bench, messages):
    server, port = start_server()
    try:
        parameters = {"checkpoint": f"ws://127.0.0.1:{port}", "rate_hz": 5.0, "seed": 1,
                      "remote_deadline_s": 5.0, "max_answer_age_s": 10.0}  # fmt: skip
        b = bench(parameters, factory=load_policy)
        assert b.client.change_state(CONFIGURE, timeout_s=60)
        assert b.client.change_state(ACTIVATE)
        joints = messages.joints(ARM, [0.1] * 7)
        chunk = b.chunks(2, 60.0, lambda: b.feed(joints=joints))[-1]
        assert np.isfinite(chunk.data).all()
        assert chunk.random_weights
        assert b.client.statuses[-1].backend == "remote"

        server.send_signal(signal.SIGKILL)
        server.wait(20)

        def told():
            found = b.client.latest("inference")
            return (
                found is not None
                and found.level != DiagnosticStatus.OK
                and ("127.0.0.1" in found.message)
            )

        assert b.client.until(told, 60.0, lambda: b.feed(joints=joints))
        before = len(b.client.chunks)
        server, _ = start_server(port)
        assert b.client.until(
            lambda: len(b.client.chunks) > before + 1, 60.0, lambda: b.feed(joints=joints)
        )
    finally:
        server.kill()
        server.wait(20)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"overlap": True}, "overlap and vision_cache_levels"),
        ({"vision_cache_levels": 0}, "overlap and vision_cache_levels"),
        ({"remote_key_file": "/nowhere/key"}, "No such file"),
    ],
)
def test_what_does_not_go_with_a_server_is_named(changes, words):
    parameters = PolicyParameters(checkpoint="ws://127.0.0.1:1", **changes)
    with pytest.raises(ValueError, match=words):
        load_policy(parameters)
    assert issubclass(ParameterError, ValueError)
