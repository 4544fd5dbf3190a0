"""Promises that take a question to see: stops, refused chunks, a reset. Arms brake and go on.

Also what the scripted run shares: the counters of `/diagnostics` and the calls of services.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

from std_msgs.msg import Bool
from std_srvs.srv import Trigger

from pi05_ros.conformance.executor_promises import FAULT, FOLLOWING, STOPPED
from pi05_ros.conformance.heard import ExecutorRecord, PolicyRecord
from pi05_ros.conformance.listener import DEEP, LATCHED, OWN_POLICY_ID, Listener
from pi05_ros.conformance.promises import (
    EXECUTOR,
    NODE,
    Promise,
    PromiseFinding,
    Verdict,
    absent,
    failed,
    passed,
)
from pi05_ros.msg import ActionChunk

WAIT_S = 30.0
STOP = Promise("stop and resume", EXECUTOR, "Stops and permission",
               "Every stop brakes within the limits, with `limiting: path` on the path, and then "
               "holds.")  # fmt: skip
HALT = Promise("halt", EXECUTOR, "Stops and permission", "true on `~/halt` | false on `~/halt`")
RESUME_LEFT = Promise("resume while halted", EXECUTOR, "Stops and permission",
                      "`~/resume` answers false and says what is left if a halt or a missing "
                      "permission remains.")  # fmt: skip
NOT_FINITE = Promise("chunk with NaN", EXECUTOR, "Which chunks are refused",
                     "sizes of `data`, `meaning`, `unit` do not fit; NaN or infinite")  # fmt: skip
RESET = Promise(
    "reset",
    NODE,
    "Topics and services",
    "new episode: buffers emptied, running inference dropped, seeds start again",
)


def probe(listener: Listener) -> list[PromiseFinding]:
    """Findings about all nodes of the listener."""
    findings = []
    for name, record in listener.executors.items():
        findings += [
            PromiseFinding(name, STOP, stop_and_resume(listener, record)),
            PromiseFinding(name, HALT, halt(listener, record)),
            PromiseFinding(name, RESUME_LEFT, resume_while_halted(listener, record)),
            PromiseFinding(name, NOT_FINITE, chunk_with_nan(listener, record)),
        ]
    for name, policy in listener.policies.items():
        findings.append(PromiseFinding(name, RESET, reset(listener, policy)))
    return findings


def trigger(listener: Listener, service: str) -> Any:
    """Answer of a Trigger service, or None."""
    return listener.ask(Trigger, service, Trigger.Request(), WAIT_S)


def mode(record: ExecutorRecord) -> int:
    """Newest mode."""
    return int(record.statuses[-1].message.mode) if record.statuses else 0


def wait_for_mode(listener: Listener, record: ExecutorRecord, *modes: int) -> bool:
    """Listen until the newest status has one of these modes."""
    return listener.spin(WAIT_S, lambda: mode(record) in modes)


def _blocked(record: ExecutorRecord) -> str:
    """What already keeps an executor from following; stops of others are not ended here."""
    if not record.statuses:
        return "no status"
    status = record.statuses[-1].message
    if status.stopped or status.halted or not status.enabled or status.fault:
        return f"blocked before: {status.reason}"
    return ""


def stop_and_resume(listener: Listener, record: ExecutorRecord) -> Verdict:
    """Stop, see it stopped, resume, see it no longer stopped."""
    if why := _blocked(record):
        return absent(why)
    answer = trigger(listener, f"{record.node}/stop")
    if answer is None or not answer.success:
        return failed(f"~/stop answers {answer}")
    stopped = wait_for_mode(listener, record, STOPPED)
    answer = trigger(listener, f"{record.node}/resume")
    if not stopped:
        return failed(f"not stopped within {WAIT_S:g} s of ~/stop")
    if answer is None or not answer.success:
        return failed(f"~/resume answers {answer}")
    gone = listener.spin(WAIT_S, lambda: mode(record) not in (STOPPED, FAULT))
    return passed("stopped, then resumed") if gone else failed("stopped after ~/resume")


@contextlib.contextmanager
def _halting(listener: Listener, record: ExecutorRecord) -> Iterator[Callable[[bool], bool]]:
    """Publishes on `~/halt`, and waits until the status says the same."""
    publisher = listener.node.create_publisher(Bool, f"{record.node}/halt", LATCHED)

    def send(value: bool) -> bool:
        publisher.publish(Bool(data=value))
        return listener.spin(WAIT_S, lambda: record.statuses[-1].message.halted == value)

    try:
        yield send
    finally:
        listener.node.destroy_publisher(publisher)


def halt(listener: Listener, record: ExecutorRecord) -> Verdict:
    """True on the topic halts, false ends it."""
    if why := _blocked(record):
        return absent(why)
    with _halting(listener, record) as send:
        halted = send(True) and wait_for_mode(listener, record, STOPPED)
        gone = send(False) and listener.spin(WAIT_S, lambda: mode(record) != STOPPED)
    if not halted:
        return failed("true on ~/halt does not stop")
    return passed("halted, then free") if gone else failed("false on ~/halt does not end it")


def resume_while_halted(listener: Listener, record: ExecutorRecord) -> Verdict:
    """`~/resume` answers false with a text while a halt is there."""
    if why := _blocked(record):
        return absent(why)
    with _halting(listener, record) as send:
        answer = trigger(listener, f"{record.node}/resume") if send(True) else None
        send(False)
    if answer is None:
        return failed("no halt or no answer")
    if answer.success or not answer.message:
        return failed(f"~/resume answers {answer.success}, {answer.message!r} while halted")
    return passed(f"answers false: {answer.message}")


def refused(record: ExecutorRecord, reason: str) -> int:
    """Counter of `/diagnostics`."""
    items = record.entries.get("executor", [])
    return items[-1].count(f"refused.{reason}") if items else 0


def chunk_with_nan(listener: Listener, record: ExecutorRecord) -> Verdict:
    """A chunk of the executor's joints that holds NaN is refused and counted."""
    if not record.statuses:
        return absent("no status")
    joints = list(record.statuses[-1].message.joints)
    topic = next(iter(listener.chunk_topics(record.node)), "")
    if not topic:
        return absent("no subscription of chunks")
    chunk = ActionChunk(policy_id=OWN_POLICY_ID, names=joints, horizon=4)
    chunk.meaning, chunk.unit = [0] * len(joints), [0] * len(joints)
    chunk.data = [math.nan] * (4 * len(joints))
    chunk.step.nanosec = 50_000_000
    publisher = listener.node.create_publisher(ActionChunk, topic, DEEP)
    before, was = refused(record, "not_finite"), mode(record)

    def send() -> None:
        chunk.header.stamp = chunk.published_stamp = listener.node.get_clock().now().to_msg()
        publisher.publish(chunk)

    try:
        counted = listener.spin(
            WAIT_S, lambda: refused(record, "not_finite") > before, send, every_s=0.5
        )
    finally:
        listener.node.destroy_publisher(publisher)
    if not counted:
        return failed("refused.not_finite does not rise")
    if was != FOLLOWING and mode(record) == FOLLOWING:
        return failed("it follows since")
    return passed(f"refused.not_finite {refused(record, 'not_finite')}")


def reset(listener: Listener, policy: PolicyRecord) -> Verdict:
    """Seeds start again after `~/reset`, numbers and policy_id go on."""
    if policy.state != "active" or not policy.chunks:
        return absent("no chunks before")
    answer = trigger(listener, f"{policy.node}/reset")
    if answer is None or not answer.success:
        return failed(f"~/reset answers {answer}")
    before, heard = policy.chunks[-1].message, len(policy.chunks)
    first = int(policy.number("seed", 0))

    def again() -> bool:
        new = policy.chunks[heard:]  # the first may have been under way
        return any(first <= item.message.seed < before.seed for item in new)

    if not listener.spin(WAIT_S, again):
        return failed(f"seed {policy.chunks[-1].message.seed} after a reset")
    after = policy.chunks[-1].message
    if after.policy_id != before.policy_id or after.chunk_id <= before.chunk_id:
        return failed(
            f"chunk {before.chunk_id} of {before.policy_id} before, {after.chunk_id} after"
        )
    return passed(f"seed {before.seed}, then {after.seed}; chunk_id goes on")
