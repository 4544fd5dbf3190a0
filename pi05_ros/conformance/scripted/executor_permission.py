"""The executor with `require_enable` and a heartbeat, teleoperation, and an arm that is stuck."""

from __future__ import annotations

from sensor_msgs.msg import JointState
from std_msgs.msg import Bool, Empty
from std_srvs.srv import SetBool

from pi05_ros.conformance.executor_promises import FAULT, FOLLOWING, STOPPED, TELEOPERATED
from pi05_ros.conformance.listener import DEEP, LATCHED
from pi05_ros.conformance.probing import WAIT_S, mode, trigger
from pi05_ros.conformance.promises import EXECUTOR, Promise, failed, passed
from pi05_ros.conformance.scripted.executor_script import STOPS, ExecutorScript
from pi05_ros.conformance.scripted.testbed import EXECUTOR_MODULE, START_S, Testbed, TestbedError

HEARTBEAT_S = 1.0
PARAMETERS = {"require_enable": True, "heartbeat_timeout_s": HEARTBEAT_S}


class PermissionScript(ExecutorScript):
    """Starts an executor that needs permission and a heartbeat, and plays the script."""

    def __init__(self, stage: Testbed, module: str = EXECUTOR_MODULE) -> None:
        super().__init__(stage, module, PARAMETERS)
        node = stage.listener.node
        self._beat = node.create_publisher(Empty, f"{self.node}/heartbeat", DEEP)
        self._teleop = node.create_publisher(JointState, f"{self.node}/teleop", DEEP)
        self._beats = False
        self._in_charge: list[bool] = []
        node.create_subscription(
            Bool, f"{self.node}/intervention", lambda m: self._in_charge.append(m.data), LATCHED
        )

    def feed(self) -> None:
        """The heartbeat too."""
        super().feed()
        if self._beats:
            self._beat.publish(Empty())

    def _ask(self, service: str, data: bool) -> bool:
        answer = self.stage.listener.ask(
            SetBool, f"{self.node}/{service}", SetBool.Request(data=data), WAIT_S
        )
        return answer is not None and bool(answer.success)

    def begin(self) -> None:
        """Stopped without permission and without a heartbeat."""
        record = self.record
        if not self.stage.until(lambda: bool(record.statuses), START_S, self.feed):
            raise TestbedError(f"no status of {self.node}: {self.stage.tail(self._name)}")
        self.stage.listener.learn()
        self._beats = True
        self.run(1.5)
        stopped, said = mode(record) == STOPPED, self.said()
        enabled = self._ask("enable", True) and self.mode_is(FOLLOWING)
        self.note(
            Promise("permission", EXECUTOR, STOPS, "`require_enable`: from the start; `~/enable` "
                    "with false | `~/enable` with true"),
            passed(f"{said}; follows once enabled") if stopped and enabled
            else failed(f"{said}, then {self.said()}"),
        )  # fmt: skip
        self._ask("enable", False)
        taken = self.mode_is(STOPPED)
        self._ask("enable", True)
        given = self.mode_is(FOLLOWING)
        self.note(
            Promise("permission is taken back", EXECUTOR, STOPS, "`~/enable` with false"),
            passed("stopped, then follows") if taken and given else failed(self.said()),
        )  # fmt: skip

    def heartbeat(self) -> None:
        """Silence of the heartbeat is a fault until resumed."""
        self._beats = False
        fault = self.mode_is(FAULT)
        said = self.said()
        self._beats = True
        self.run(1.0)
        stays = mode(self.record) == FAULT
        resumed = trigger(self.stage.listener, f"{self.node}/resume")
        again = self.mode_is(FOLLOWING)
        good = fault and stays and resumed is not None and resumed.success and again
        self.note(
            Promise("heartbeat", EXECUTOR, STOPS, "before the first message: stopped; silence "
                    "longer than that: fault | the first message; `~/resume`"),
            passed(f"{said}; follows after ~/resume") if good
            else failed(f"fault {fault}, stays {stays}, again {again}: {said}"),
        )  # fmt: skip

    def take_over(self) -> None:
        """A person takes over without and with targets, and hands back."""
        self._ask("take_over", True)
        over = self.mode_is(TELEOPERATED)
        told = self.stage.until(
            lambda: bool(self._in_charge) and self._in_charge[-1], WAIT_S, self.feed
        )
        self._ask("take_over", False)
        back = self.mode_is(FOLLOWING)
        self.note(
            Promise("take over", EXECUTOR, "Hand-over", "`~/take_over` with true takes over "
                    "without a target: the arm brakes and holds until targets come, or until it "
                    "is handed back with false."),
            passed("teleoperated, then follows") if over and told and back
            else failed(f"over {over}, told {told}, back {back}: {self.said()}"),
        )  # fmt: skip
        target = JointState(name=["joint1"], position=[-0.4])

        def steer() -> None:
            self.feed()
            self._teleop.publish(target)

        self.stage.until(lambda: abs(self.measured["joint1"] + 0.4) < 1e-3, WAIT_S, steer)
        reached, over = self.measured["joint1"], mode(self.record) == TELEOPERATED
        back = self.mode_is(FOLLOWING)
        self.note(
            Promise("teleoperation", EXECUTOR, "Hand-over", "Without a target for "
                    "`teleop_timeout_s` the arm is handed back and joins the path of the newest "
                    "chunk."),
            passed(f"joint1 went to {reached:.3f}, then follows") if over and back
            and abs(reached + 0.4) < 0.01 else failed(f"joint1 at {reached:.3f}: {self.said()}"),
        )  # fmt: skip

    def blocked_arm(self) -> None:
        """An arm that does not follow its commands is a fault."""
        self.arm_follows = False
        self.target = 2.0
        fault = self.mode_is(FAULT)
        said = self.said()
        self.arm_follows, self.target = True, 0.1
        self.run(0.5)
        trigger(self.stage.listener, f"{self.node}/resume")
        again = self.mode_is(FOLLOWING)
        self.note(
            Promise("tracking error", EXECUTOR, STOPS, "a joint is outside the range of its "
                    "commands of the last 0.5 s by more than `following_lag_s` at full velocity, "
                    "for `tracking_error_time_s`: fault"),
            passed(f"{said}; follows after ~/resume") if fault and again
            else failed(f"fault {fault}, again {again}: {said}"),
        )  # fmt: skip

    def play_all(self) -> None:
        """The whole script."""
        self.begin()
        for step in (self.heartbeat, self.take_over, self.blocked_arm):
            step()
