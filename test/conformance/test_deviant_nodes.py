"""The scripts find what real nodes break, and nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import rclpy
from rclpy.node import Node

from pi05_ros.cli.main import main
from pi05_ros.conformance import probing
from pi05_ros.conformance.listener import Listener
from pi05_ros.conformance.promises import PromiseOutcome
from pi05_ros.conformance.scripted.chunk_faults import REFUSALS
from pi05_ros.conformance.scripted.executor_script import ExecutorScript
from pi05_ros.conformance.scripted.policy_faults import FAULTS
from pi05_ros.conformance.scripted.policy_script import PolicyScript
from pi05_ros.conformance.scripted.testbed import Testbed
from pi05_ros.doctor import live_conformance

HERE = Path(__file__).parent
UNSEEN_S = 3.0
"""How long is waited for what a deviant node never does."""


@pytest.fixture
def testbed(monkeypatch, tmp_path):
    """Makes the place for nodes that are files of this folder."""
    monkeypatch.setenv(
        "PYTHONPATH", f"{HERE}:{HERE.parents[1]}:{os.environ.get('PYTHONPATH', '')}"
    )
    context = rclpy.Context()
    rclpy.init(context=context)
    listener = Listener(Node("conformance", namespace=f"/{tmp_path.name}", context=context))
    with Testbed(listener, f"/{tmp_path.name}") as stage:
        yield stage
    listener.executor.shutdown()
    listener.node.destroy_node()
    rclpy.shutdown(context=context)


def broken(findings):
    return {
        item.promise.name: item.verdict.seen
        for item in findings
        if item.verdict.outcome is PromiseOutcome.FAIL
    }


def test_a_deviant_policy_node(testbed):
    script = PolicyScript(testbed, "deviant_policy")
    script.begin()
    script.chunks(4)
    testbed.wait_s = UNSEEN_S
    script.play(next(fault for fault in FAULTS if fault.name == "stamp 0"))
    testbed.wait_s = 60.0
    script.play(next(fault for fault in FAULTS if fault.name == "joint named twice"))
    findings = script.findings + testbed.listener.judge()
    script.end()
    found = broken(findings + script.findings[-1:])
    assert {"chunk numbers", "steps past", "stamp 0"} <= set(found), found
    # A busy machine may hold up the diagnostics.
    others = {"seeds", "diagnostics at 1 Hz"}
    assert set(found) <= {"chunk numbers", "steps past", "stamp 0", *others}, found


def test_a_deviant_executor(testbed, monkeypatch):
    script = ExecutorScript(testbed, "deviant_executor")
    script.begin()
    for name in ("a frame", "NaN"):
        testbed.wait_s = UNSEEN_S if name == "a frame" else 60.0
        script.chunks_come = False
        script._refuse(next(refusal for refusal in REFUSALS if refusal.name == name))
        script.chunks_come = True
    testbed.wait_s = 60.0
    script.run(1.0)
    monkeypatch.setattr(probing, "WAIT_S", UNSEEN_S)
    script.stop_and_resume()
    findings = script.findings + testbed.listener.judge()
    script.end()
    found = broken(findings + script.findings[-1:])
    due = {"a frame", "velocity limits", "acceleration limits", "stop and resume"}
    assert due <= set(found), found
    # The jumps begin with the first command and may leave the limits; a busy machine does not keep
    # 50 Hz.
    allowed = {"starts at the measured joints", "holding is at rest", "control rate"}
    allowed |= {"finite commands"}
    assert set(found) <= due | allowed, found


def test_doctor_with_nothing_to_listen_to(capsys):
    assert main(["doctor", "--conformance", "--seconds", "0", "--namespace", "nobody"]) == 1
    assert "No policy node and no executor" in capsys.readouterr().out


def test_doctor_tells_broken_promises(capsys, monkeypatch):
    row = {"target": "/n", "name": "rate", "page": "docs/node.md", "heading": "Parameters",
           "sentence": "Inferences per second that are asked for.", "seen": "3 Hz"}  # fmt: skip
    for outcome, code in (("pass", 0), ("fail", 1), ("not applicable", 1)):
        rows = [{**row, "outcome": outcome}]
        monkeypatch.setattr(live_conformance, "findings", lambda *_, rows=rows: rows)
        assert main(["doctor", "--conformance"]) == code
        said = " ".join(capsys.readouterr().out.split())
        assert ("docs/node.md promises" in said) == (outcome == "fail"), said


def test_active_is_for_conformance(capsys):
    assert main(["doctor", "--active"]) == 2
    assert "--conformance" in capsys.readouterr().err
