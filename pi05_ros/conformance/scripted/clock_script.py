"""Both nodes on simulated time: no clock, jumps back and ahead, a clock that stands still."""

from __future__ import annotations

from pi05_ros.conformance.executor_promises import FOLLOWING
from pi05_ros.conformance.heard import NS
from pi05_ros.conformance.probing import WAIT_S, mode
from pi05_ros.conformance.promises import (
    EXECUTOR,
    NODE,
    Promise,
    PromiseFinding,
    Verdict,
    failed,
    passed,
)
from pi05_ros.conformance.scripted.executor_script import ExecutorScript
from pi05_ros.conformance.scripted.policy_script import ACTIVATE, CONFIGURE, PolicyScript
from pi05_ros.conformance.scripted.testbed import START_S, Testbed, TestbedError

STEP_NS = 20_000_000
JUMPS = (-0.15, -0.3, -5.0, 3600.0, -3700.0)
"""Seconds."""
BEGIN_NS = 5000 * NS
QUIET_S = 1.5
SAMPLES = "Which samples are used"


class ClockScript:
    """A policy node and an executor that follow `/clock`, which this script publishes.

    Args:
        stage: of both processes.

    """

    def __init__(self, stage: Testbed) -> None:
        self.stage = stage
        simulated = {"use_sim_time": True}
        self._executor = ExecutorScript(stage, parameters=simulated)
        stage.listener.during = None
        stage.sources.silent.clear()
        self._policy = PolicyScript(stage, parameters=simulated)
        self.findings: list[PromiseFinding] = []

    def note(self, node: str, promise: Promise, verdict: Verdict) -> None:
        """Add a finding."""
        self.findings.append(PromiseFinding(node, promise, verdict))

    def tick(self) -> None:
        """A step of time, samples and chunks."""
        self.stage.simulated_ns += STEP_NS
        self.stage.publish_clock()
        self._executor.feed()

    def begin(self) -> None:
        """Before `/clock`, then the first chunks."""
        stage, policy, executor = self.stage, self._policy.record, self._executor.record
        both = (policy, executor)
        if not stage.listener.spin(START_S, lambda: all(item.statuses for item in both)):
            raise TestbedError(f"no status: {stage.tail('policy')}")
        for transition in (CONFIGURE, ACTIVATE):
            if not stage.change_state(policy.node, transition):
                raise TestbedError(f"{policy.node} does not come up: {stage.tail('policy')}")
        items = policy.entries
        said = stage.listener.spin(
            WAIT_S,
            lambda: any("/clock" in item.message.message for item in items.get("inputs", [])[-1:]),
        )
        self.note(
            policy.node,
            Promise("before /clock", NODE, SAMPLES, "nothing ticks before `/clock` arrives; "
                    "diagnostics still come, and say so."),
            passed(items["inputs"][-1].message.message) if said and not policy.chunks
            else failed(f"{len(policy.chunks)} chunks, /clock named: {said}"),
        )  # fmt: skip
        stage.simulated_ns = BEGIN_NS
        if not self._goes_on():
            raise TestbedError(f"nothing on simulated time: {self._executor.said()}")
        stage.listener.learn()

    def _goes_on(self) -> bool:
        """Whether new chunks come and the executor follows."""
        record = self._policy.record
        due = len(record.chunks) + 2
        return self.stage.until(
            lambda: len(record.chunks) >= due and mode(self._executor.record) == FOLLOWING,
            2 * WAIT_S, self.tick,
        )  # fmt: skip

    def _only_clock(self) -> None:
        """A step of time without samples."""
        self.stage.simulated_ns += STEP_NS
        self.stage.publish_clock()

    def jump(self, seconds: float) -> None:
        """The clock jumps, and no sample comes for a while: nothing from before is published."""
        record, stage = self._policy.record, self.stage
        counted = self._policy.counter("clock_jumps")
        stage.simulated_ns += round(seconds * NS)

        def noticed() -> bool:
            return self._policy.counter("clock_jumps") > counted

        if seconds < 0:  # time waits there, so that a busy node cannot miss it
            stage.until(noticed, each=stage.publish_clock)
        else:
            stage.until(lambda: False, QUIET_S, self._only_clock)
        heard = len(record.chunks)
        stage.until(lambda: False, QUIET_S, self._only_clock)
        old = len(record.chunks) - heard
        again = self._goes_on()
        risen = self._policy.counter("clock_jumps") - counted
        seen = f"clock_jumps +{risen}, chunks again {again}"
        promise = Promise(f"clock jumps by {seconds:+g} s", NODE, SAMPLES, "all buffers are "
                          "emptied, and chunks whose inference began before the jump are "
                          "dropped (`clock_jump`).")  # fmt: skip
        bad = not again or old or (seconds < 0 and not risen)
        self.note(
            record.node, promise,
            failed(f"{seen}, {old} old chunks, {self._executor.said()}") if bad else passed(seen),
        )  # fmt: skip

    def standstill(self) -> None:
        """Time stands still: no command, and both say so."""
        executor, policy = self._executor.record, self._policy.record
        sent = sum(map(len, executor.commands.values()))
        self.stage.listener.spin(1.0)
        sent = sum(map(len, executor.commands.values()))
        says = self.stage.listener.spin(
            WAIT_S, lambda: "stood still" in policy.entries["inputs"][-1].message.message
        )
        tells = "stands still" in (executor.entries["executor"][-1].value("reason") or "")
        more = sum(map(len, executor.commands.values())) - sent
        self.note(
            policy.node,
            Promise("the clock stands still", NODE, SAMPLES, "They also say when the clock has "
                    "stood still for `dead_source_timeout_s`."),
            passed(policy.entries["inputs"][-1].message.message) if says
            else failed(policy.entries["inputs"][-1].message.message),
        )  # fmt: skip
        self.note(
            executor.node,
            Promise("nothing while the clock stands still", EXECUTOR, "Time", "In simulated time "
                    "nothing is sent while the clock stands still; `/diagnostics` says so."),
            passed("no command, told") if tells and not more
            else failed(f"{more} commands, {self._executor.said()}"),
        )  # fmt: skip

    def play_all(self) -> None:
        """The whole script."""
        self.begin()
        for seconds in JUMPS:
            self.jump(seconds)
        self.standstill()

    def end(self) -> None:
        """SIGTERM of both, while the clock stands still."""
        for script in (self._policy, self._executor):
            script.end()
            self.findings += script.findings[-1:]
