"""The executor under chunks and joint states of a script: this process is policy and arm."""

from __future__ import annotations

import array
import signal
from collections.abc import Callable
from typing import Any

from sensor_msgs.msg import JointState

from pi05_ros.conformance.executor_promises import FOLLOWING, HOLDING, STOPPED, WAITING
from pi05_ros.conformance.heard import NS, ExecutorRecord
from pi05_ros.conformance.listener import DEEP
from pi05_ros.conformance.probing import (
    HALT,
    RESUME_LEFT,
    STOP,
    WAIT_S,
    mode,
    refused,
    resume_while_halted,
    stop_and_resume,
    trigger,
)
from pi05_ros.conformance.probing import halt as check_halt
from pi05_ros.conformance.promises import (
    EXECUTOR,
    Promise,
    failed,
    passed,
)
from pi05_ros.conformance.scripted.chunk_faults import CHUNKS_HEADING, REFUSALS, Refusal
from pi05_ros.conformance.scripted.testbed import (
    EXECUTOR_MODULE,
    JOINTS,
    START,
    START_S,
    Script,
    Testbed,
    TestbedError,
)
from pi05_ros.msg import ActionChunk
from pi05_ros.resources import config_dir

HORIZON, STEP_NS = 16, 50_000_000
FAR = 2.0
"""rad off: farther than the arm gets while a chunk lasts."""
STOPS = "Stops and permission"
PARAMETERS = {"limits_file": str(config_dir() / "sim_arm_limits.yaml"), "control_rate_hz": 50.0}


class ExecutorScript(Script):
    """Starts an executor and plays the script.

    Args:
        stage: of the process.
        module: what is started; tests plant nodes that break promises.
        parameters: besides the limits of the simulated arm.

    """

    def __init__(
        self,
        stage: Testbed,
        module: str = EXECUTOR_MODULE,
        parameters: dict[str, Any] | None = None,
    ) -> None:
        node = stage.start("executor", module, {**PARAMETERS, **(parameters or {})})
        self.record: ExecutorRecord = stage.listener.add_executor(node)
        super().__init__(stage, "executor", self.record)
        topic = f"{stage.namespace}/pi05_policy/action_chunk"
        self._out = stage.listener.node.create_publisher(ActionChunk, topic, DEEP)
        self._number = 0
        self.target = 0.1  # of joint1
        self.chunks_come = True
        self.arm_follows = True
        self.measured = dict(zip(JOINTS, START, strict=True))
        self._sent_s = 0.0
        stage.sources.silent |= {"base_camera", "wrist_camera"}
        stage.sources.make["joint_states"] = self._state
        stage.listener.during = self.feed

    def _state(self) -> JointState:
        if self.arm_follows:
            for series in self.record.commands.values():
                if series:
                    self.measured.update(series[-1][1])
        return JointState(name=list(self.measured), position=list(self.measured.values()))

    def feed(self) -> None:
        """Joint states, and a chunk ten times per second."""
        self.stage.feed()
        now_s = self.stage.now_ns() / NS
        if self.chunks_come and not 0 <= now_s - self._sent_s < 0.1:
            self._sent_s = now_s
            self.send()

    def send(self, change: Callable[[ActionChunk], None] = lambda chunk: None) -> None:
        """One chunk, which may be spoiled."""
        self._number += 1
        rows = [self.target, *START[1:]] * HORIZON
        chunk = ActionChunk(policy_id="script", chunk_id=self._number, names=list(JOINTS),
                            horizon=HORIZON, meaning=[0] * 7, unit=[0, 0, 0, 0, 0, 0, 4],
                            data=array.array("f", rows))  # fmt: skip
        chunk.step.nanosec = STEP_NS
        stamp = chunk.header.stamp
        stamp.sec, stamp.nanosec = divmod(self.stage.now_ns(), NS)
        chunk.observation_stamp.sec, chunk.observation_stamp.nanosec = stamp.sec, stamp.nanosec
        chunk.published_stamp = chunk.observation_stamp
        change(chunk)
        self._out.publish(chunk)

    def mode_is(self, *modes: int, seconds: float = WAIT_S) -> bool:
        """Wait until the status has one of these modes."""
        return self.stage.until(lambda: mode(self.record) in modes, seconds, self.feed)

    def run(self, seconds: float) -> None:
        """Let time pass."""
        self.stage.run(seconds, self.feed)

    def said(self) -> str:
        """Newest mode and reason."""
        status = self.record.statuses[-1].message
        return f"mode {status.mode}, {status.reason!r}"

    def begin(self) -> None:
        """Waiting first, then following from the measured joints."""
        stage, record = self.stage, self.record
        self.chunks_come = False
        if not stage.until(lambda: bool(record.statuses), START_S, self.feed):
            raise TestbedError(f"no status of {self.node}: {stage.tail(self._name)}")
        stage.listener.learn()
        self.run(1.5)
        sent = sum(map(len, record.commands.values()))
        waits = mode(record) == WAITING and not sent
        self.note(
            Promise("nothing before the first chunk", EXECUTOR, "", "It starts with a chunk, at "
                    "the measured joints, at rest, once joint states have come for 0.2 s; before "
                    "that nothing is sent."),
            passed("waiting, no command") if waits else failed(f"{self.said()}, {sent} commands"),
        )  # fmt: skip
        self.chunks_come = True
        if not self.mode_is(FOLLOWING, seconds=2 * WAIT_S):
            raise TestbedError(f"{self.node} does not follow: {self.said()}")
        stage.until(lambda: len(record.commands) > 1, WAIT_S, self.feed)
        first = {k: v for series in record.commands.values() for k, v in series[0][1].items()}
        off = max(abs(first[name] - at) for name, at in zip(JOINTS, START, strict=True))
        # One period of motion at most, within the acceleration limit.
        self.note(
            Promise("starts at the measured joints", EXECUTOR, "", "It starts with a chunk, at "
                    "the measured joints, at rest"),
            passed(f"first command {off:.4f} off") if off < 0.06 else failed(f"{off:.3f} off"),
        )  # fmt: skip

    def refusals(self) -> None:
        """Every kind of chunk that must be refused, each several times; then good ones again."""
        self.chunks_come = False
        for refusal in REFUSALS:
            self._refuse(refusal)
        held = mode(self.record) in (HOLDING, WAITING)  # released, if states came late
        self.note(
            Promise("holds without good chunks", EXECUTOR, "", "When the chunk runs out, joint "
                    "states go stale or `~/stop` is called, it brakes within the acceleration "
                    "limit and holds."),
            passed(self.said()) if held else failed(self.said()),
        )  # fmt: skip
        self.chunks_come = True
        self.mode_is(FOLLOWING)

    def _refuse(self, refusal: Refusal) -> None:
        """Send a spoiled chunk until it is counted."""
        before = refused(self.record, refusal.counter)

        def send() -> None:
            self.stage.feed()
            if self.stage.now_ns() / NS - self._sent_s > 0.2:
                self._sent_s = self.stage.now_ns() / NS
                self.send(refusal.change)

        rose = self.stage.until(lambda: refused(self.record, refusal.counter) > before, each=send)
        promise = Promise(refusal.name, EXECUTOR, CHUNKS_HEADING, refusal.sentence)
        seen = f"refused.{refusal.counter} {refused(self.record, refusal.counter)}"
        self.note(promise, passed(seen) if rose else failed(f"{seen}, does not rise"))

    def far_targets(self) -> None:
        """Targets beyond all limits, to and fro: the limits are judged on all commands."""
        for target in (FAR, -FAR, 50.0, 1e30, -0.2):
            self.target = target
            self.run(1.0)
        self.target = 0.1
        self.run(1.0)

    def stop_and_resume(self) -> None:
        """`~/stop`, then `~/resume`."""
        self.note(STOP, stop_and_resume(self.stage.listener, self.record))
        self.mode_is(FOLLOWING)

    def stops(self) -> None:
        """`~/stop`, `~/halt`, `~/resume`."""
        listener = self.stage.listener
        self.stop_and_resume()
        self.note(HALT, check_halt(listener, self.record))
        self.mode_is(FOLLOWING)
        self.note(RESUME_LEFT, resume_while_halted(listener, self.record))
        self.mode_is(FOLLOWING)
        trigger(listener, f"{self.node}/stop")
        stays = self.mode_is(STOPPED)
        self.run(2.5)  # chunks come meanwhile; holding is judged on all commands
        stays = stays and mode(self.record) == STOPPED
        trigger(listener, f"{self.node}/resume")
        goes_on = self.mode_is(FOLLOWING)
        self.note(
            Promise("stop stays", EXECUTOR, STOPS, "stop | `~/stop` | `~/resume`"),
            passed("stopped until resumed, then follows") if stays and goes_on
            else failed(self.said()),
        )  # fmt: skip

    def speed(self) -> None:
        """`speed_scale` 0 holds, 1 goes on, 2 is refused."""
        bad, reason = self.stage.set_parameter(self.node, "speed_scale", 2.0)
        self.stage.set_parameter(self.node, "speed_scale", 0.0)
        self.run(1.0)
        began = {topic: len(series) for topic, series in self.record.commands.items()}
        self.target = -0.3
        self.run(1.5)
        moved = max(
            abs(value - series[began[topic]][1][joint])
            for topic, series in self.record.commands.items()
            for _, values in series[began[topic] :]
            for joint, value in values.items()
        )
        self.stage.set_parameter(self.node, "speed_scale", 1.0)
        self.target = 0.1
        self.run(1.0)
        good = not bad and reason and moved < 1e-3
        self.note(
            Promise("speed_scale", EXECUTOR, STOPS, "at 0 the arm holds."),
            passed(f"moved by {moved:.5f}; 2.0 refused") if good
            else failed(f"moved by {moved:.4f}; 2.0 taken: {bad}"),
        )  # fmt: skip

    def states(self) -> None:
        """Joint states that end, and two publishers that disagree."""
        self.stage.sources.silent.add("joint_states")
        held = self.mode_is(HOLDING)
        waiting = self.mode_is(WAITING)
        said = self.said()
        self.run(1.0)
        self.stage.sources.silent.discard("joint_states")
        again = self.mode_is(FOLLOWING)
        self.note(
            Promise("joint states end", EXECUTOR, "An arm that somebody else moves", "joint "
                    "states have been missing for more than twice `max_state_age_s`"),
            passed("held, then released, then follows again") if held and waiting and again
            else failed(f"held {held}, released {waiting}, again {again}: {said}"),
        )  # fmt: skip

        def elsewhere() -> JointState:
            message = self._state()
            message.position[0] += 0.8
            return message

        self.stage.sources.second["joint_states"] = elsewhere
        held = self.mode_is(HOLDING, WAITING)
        said = self.said()
        self.run(1.0)
        stays = mode(self.record) != FOLLOWING
        self.stage.sources.second.clear()
        again = self.mode_is(FOLLOWING)
        self.note(
            Promise("joint states disagree", EXECUTOR, "Joint states", "If it jumps to and fro, "
                    "two publishers disagree: the arm brakes and holds, nothing starts"),
            passed(f"{said}; then follows again") if held and stays and again
            else failed(f"held {held}, stays {stays}, again {again}: {said}"),
        )  # fmt: skip

    def end(self) -> None:
        """SIGTERM: brakes, code 0."""
        code, took = self.stage.end(self._name, signal.SIGTERM)
        self.stage.listener.during = None
        seen = f"code {code} after {took:.1f} s"
        self.note(
            Promise("SIGTERM of the executor", EXECUTOR, "Time", "SIGINT and SIGTERM brake in the "
                    "same way before the process ends, for 2 s at most."),
            passed(seen) if code == 0 else failed(seen),
        )  # fmt: skip

    def play_all(self) -> None:
        """The whole script."""
        self.begin()
        for step in (self.refusals, self.far_targets, self.stops, self.speed, self.states):
            step()
