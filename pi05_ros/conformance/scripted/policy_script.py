"""The policy node under faults that are played into its topics."""

from __future__ import annotations

import signal
from typing import Any

from std_msgs.msg import String

from pi05_ros.conformance.heard import NS, PolicyRecord, ns
from pi05_ros.conformance.policy_promises import ACTIVE, OK
from pi05_ros.conformance.probing import RESET, WAIT_S, reset
from pi05_ros.conformance.promises import (
    NODE,
    Promise,
    Verdict,
    absent,
    failed,
    passed,
)
from pi05_ros.conformance.scripted.policy_faults import FAULTS, SAMPLES, Fault
from pi05_ros.conformance.scripted.testbed import (
    POLICY_MODULE,
    START_S,
    Script,
    Testbed,
    TestbedError,
    joint_state,
    set_stamp,
)

CONFIGURE, CLEANUP, ACTIVATE, DEACTIVATE = 1, 2, 3, 4
RATE_HZ = 10.0
TRANSITIONS, TOPICS = "Transitions", "Topics and services"
QUIET_S = 1.5
GOOD_FOR_NS = NS
"""A source that is spoiled has good samples for max_age_s more, with others max_skew_s newer."""
PARAMETERS = {
    "checkpoint": "random:tiny", "robot": "sim_arm", "rate_hz": RATE_HZ, "threads": 1,
    "camera_transport.wrist": "compressed", "max_answer_age_s": 5.0,
}  # fmt: skip


class PolicyScript(Script):
    """Starts a policy node and plays the script.

    Args:
        stage: of the process.
        module: what is started; tests plant nodes that break promises.
        parameters: more than those of the script.

    """

    def __init__(
        self, stage: Testbed, module: str = POLICY_MODULE, parameters: dict[str, Any] | None = None
    ) -> None:
        node = stage.start("policy", module, {**PARAMETERS, **(parameters or {})})
        self.record: PolicyRecord = stage.listener.add_policy(node)
        super().__init__(stage, "policy", self.record)

    def counter(self, key: str, entry: str = "inputs") -> int:
        """Newest value of a counter in diagnostics."""
        items = self.record.entries.get(entry, [])
        return items[-1].count(key) if items else 0

    def chunks(self, more: int = 1, seconds: float = WAIT_S) -> bool:
        """Feed until more chunks have come."""
        due = len(self.record.chunks) + more
        return self.stage.until(lambda: len(self.record.chunks) >= due, seconds)

    def begin(self) -> None:
        """From unconfigured to the first chunks."""
        stage, record = self.stage, self.record
        if not stage.listener.spin(START_S, lambda: bool(record.statuses)):
            raise TestbedError(f"no status of {self.node}: {stage.tail(self._name)}")
        first = record.statuses[0].message.state
        self.note(
            Promise("status before configure", NODE, TOPICS, "in every state, on each change and "
                    "at the end"),
            passed("unconfigured") if first == 1 else failed(f"state {first}"),
        )  # fmt: skip
        answer = stage.change_state(self.node, ACTIVATE)
        self.note(
            Promise("request that the state does not allow", NODE, TRANSITIONS, "A request that "
                    "the state does not allow is answered `success: false`"),
            passed("activate of an unconfigured node: false") if answer is False
            else failed(f"activate of an unconfigured node: {answer}"),
        )  # fmt: skip
        for transition in (CONFIGURE, ACTIVATE):
            if not stage.change_state(self.node, transition):
                raise TestbedError(f"{self.node} does not come up: {stage.tail(self._name)}")
        self._missing()
        if not self.chunks(3, 2 * WAIT_S):
            raise TestbedError(f"no chunks of {self.node}: {stage.tail(self._name)}")
        stage.listener.learn()

    def _missing(self) -> None:
        """Active without any input: nothing comes, and it is said why."""
        self.stage.listener.spin(WAIT_S, lambda: self.counter("base_camera.refused.missing") > 0)
        seen = f"refused.missing {self.counter('base_camera.refused.missing')}"
        promise = Promise("no inputs", NODE, SAMPLES, "no usable sample since activation, reset "
                          "or a clock jump")  # fmt: skip
        good = not self.record.chunks and self.counter("base_camera.refused.missing") > 0
        self.note(promise, passed(seen) if good else failed(f"{seen}, {len(self.record.chunks)} "
                                                            "chunks"))  # fmt: skip

    def play(self, fault: Fault) -> None:
        """Play a fault, see its counter rise and no chunk answer it, heal it, see chunks again."""
        promise = Promise(fault.name, NODE, SAMPLES, fault.sentence)
        key, record = f"{fault.source}.{fault.counter}", self.record
        before, heard, began_ns = self.counter(key), len(record.chunks), self.stage.now_ns()
        fault.make(self.stage)
        rose = self.stage.until(lambda: self.counter(key) > before)
        self.stage.run(QUIET_S)
        reports = len(record.entries["inputs"])
        self.stage.run(QUIET_S)
        fine = any(item.level == OK for item in record.entries["inputs"][reports + 1 :])
        wrong = [
            chunk.message.chunk_id
            for chunk in record.chunks[heard:]
            if max(map(ns, chunk.message.input_stamps)) > began_ns + GOOD_FOR_NS
        ]
        self.stage.sources.heal()
        if not rose:
            self.note(promise, failed(f"{key} does not rise"))
        elif wrong:
            self.note(promise, failed(f"chunks {wrong} answer samples of meanwhile"))
        elif fine:
            self.note(promise, failed("diagnostics are OK meanwhile"))
        elif not self.chunks(2):
            self.note(promise, failed("no chunks after it was over"))
        else:
            self.note(promise, passed(f"{key} {self.counter(key)}, no chunk, then chunks again"))

    def unchanged(self) -> None:
        """Fewer samples than ticks: counted, and no chunk answers a sample twice."""
        key = "base_camera.refused.unchanged"
        promise = Promise("unchanged samples", NODE, SAMPLES, "no new sample since the last "
                          "inference")  # fmt: skip
        slow_ms = max(chunk.message.timings.total_ms for chunk in self.record.chunks[-5:])
        if slow_ms > 200:
            self.note(promise, absent(f"an inference takes {slow_ms:.0f} ms: no tick is left"))
            return
        before = self.counter(key)
        rose = self.stage.until(lambda: self.counter(key) > before, every_s=0.4)
        seen = f"{key} {self.counter(key)}"
        self.note(promise, passed(seen) if rose else failed(f"{seen}, does not rise"))

    def prompts(self) -> None:
        """A prompt on the topic is used and shown; a blank one means the profile's default."""
        default = self.record.statuses[-1].message.prompt
        self.stage.prompt.publish(String(data="put the cup on the plate"))
        used = self._prompt_is("put the cup on the plate")
        self.note(
            Promise("prompt topic", NODE, TOPICS, "sets the parameter `prompt`; empty means the "
                    "profile's default"),
            passed("in status and chunks") if used else failed(self._shown()),
        )  # fmt: skip
        self.stage.prompt.publish(String(data=" \t "))
        used = self._prompt_is(default)
        self.note(
            Promise("blank prompt", NODE, "Parameters", "Empty or blank: the robot profile's "
                    "default prompt."),
            passed(f"back to {default!r}") if used else failed(self._shown()),
        )  # fmt: skip
        taken, why = self.stage.set_parameter(self.node, "prompt", "push the block")
        used = taken and self._prompt_is("push the block")
        self.note(
            Promise("prompt parameter", NODE, "Parameters", "The prompt topic sets it too, the "
                    "last writer wins."),
            passed("in status and chunks") if used else failed(why or self._shown()),
        )  # fmt: skip

    def _prompt_is(self, text: str) -> bool:
        """Feed until the status and the newest chunk show a prompt."""
        record = self.record
        return self.stage.until(
            lambda: (
                record.statuses[-1].message.prompt == text
                and bool(record.chunks)
                and record.chunks[-1].message.prompt.strip() == text
            )
        )

    def _shown(self) -> str:
        chunk = self.record.chunks[-1].message.prompt if self.record.chunks else ""
        return f"status {self.record.statuses[-1].message.prompt!r}, chunk {chunk!r}"

    def resets(self) -> None:
        """`~/reset`."""
        self.chunks(4)
        self.record.state = "active"
        verdicts: list[Verdict] = []
        self.stage.listener.during = self.stage.feed
        try:
            verdicts.append(reset(self.stage.listener, self.record))
        finally:
            self.stage.listener.during = None
        self.note(RESET, verdicts[0])

    def parameters(self) -> None:
        """A good value is taken, a bad one and a read-only one are refused with the reason."""
        good, why = self.stage.set_parameter(self.node, "rate_hz", 8.0)
        bad, reason = self.stage.set_parameter(self.node, "rate_hz", -1.0)
        fixed, other = self.stage.set_parameter(self.node, "checkpoint", "random:pi05")
        wrong = [
            text
            for text, is_wrong in (
                (f"rate_hz 8.0 refused: {why}", not good),
                ("rate_hz -1 taken", bad or not reason),
                ("checkpoint taken while active", fixed or not other),
            )
            if is_wrong
        ]
        self.note(
            Promise("parameters", NODE, "Parameters", "a bad value later is refused with the "
                    "reason."),
            failed("; ".join(wrong)) if wrong else passed(reason),
        )  # fmt: skip
        self.stage.set_parameter(self.node, "rate_hz", RATE_HZ)

    def flood(self) -> None:
        """Joint states of others as fast as they can be sent: chunks go on."""

        def pour() -> None:
            self.stage.feed()
            for _ in range(50):
                message = set_stamp(joint_state((1.0,), ("wheel",)), self.stage.now_ns())
                self.stage.publish("joint_states", message)

        due = len(self.record.chunks) + 3
        came = self.stage.until(lambda: len(self.record.chunks) >= due, WAIT_S, pour)
        promise = Promise("flood of joint states", NODE, SAMPLES, "The subscription queues 50 "
                          "messages, so another publisher cannot push out those of the "
                          "arm.")  # fmt: skip
        self.note(promise, passed("chunks go on") if came else failed("no more chunks"))

    def lifecycle(self) -> None:
        """Deactivate, activate again, clean up, configure again."""
        stage, record = self.stage, self.record
        old = record.chunks[-1].message.policy_id
        stage.change_state(self.node, DEACTIVATE)
        stage.run(0.5)
        began = len(record.chunks)
        stage.run(QUIET_S)
        came = len(record.chunks) - began
        self.note(
            Promise("deactivate", NODE, TRANSITIONS, "ticks stop, a running inference may end "
                    "within `stop_timeout_s`, its result is dropped"),
            failed(f"{came} chunks") if came else passed("no chunk"),
        )  # fmt: skip
        answers = [stage.change_state(self.node, x) for x in (CLEANUP, CONFIGURE, ACTIVATE)]
        again = all(answers) and self.chunks(1, 2 * WAIT_S)
        first = next((c.message for c in record.chunks if c.message.policy_id != old), None)
        right = again and first is not None and first.chunk_id == 0 and first.seed == 0
        self.note(
            Promise("activate again", NODE, TRANSITIONS, "buffers emptied, new `policy_id`, "
                    "`chunk_id` starts at 0, ticks start"),
            passed("new policy_id, chunk 0, seed 0") if right
            else failed(f"answers {answers}, chunk {first and first.chunk_id}, "
                        f"seed {first and first.seed}"),
        )  # fmt: skip

    def end(self) -> None:
        """SIGTERM: last status, code 0."""
        code, took = self.stage.end(self._name, signal.SIGTERM)
        self.stage.listener.spin(2.0, lambda: self.record.statuses[-1].message.state == 4)
        last = self.record.statuses[-1].message.state
        seen = f"code {code} after {took:.1f} s, last status {last}"
        self.note(
            Promise("SIGTERM", NODE, TRANSITIONS, "SIGINT and SIGTERM shut down the same way and "
                    "end the process with code 0 within 5 s"),
            passed(seen) if code == 0 and last == 4 else failed(seen),
        )  # fmt: skip

    def play_all(self) -> None:
        """The whole script, from a node that has just been started to its end."""
        self.begin()
        for fault in FAULTS:
            self.play(fault)
        for step in (self.unchanged, self.prompts, self.resets, self.parameters, self.flood):
            step()
        self.lifecycle()
        if self.record.statuses[-1].message.state != ACTIVE:
            raise TestbedError(f"{self.node} is not active in the end")
