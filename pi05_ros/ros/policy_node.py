"""The lifecycle node: camera and joint-state topics in, action chunks out.

The node is a list of managed parts; here are its transitions and what it says about itself.
docs/node.md describes it for users.
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNode, TransitionCallbackReturn

from pi05_ros.msg import PolicyStatus
from pi05_ros.ros import diagnostics, process, qos
from pi05_ros.ros.library_logs import LibraryLogs
from pi05_ros.ros.messages import StatusPublisher, status_message, time_msg
from pi05_ros.ros.parameter_server import ParameterServer
from pi05_ros.ros.policy_parts.inference_loop import TimedLoop
from pi05_ros.ros.policy_parts.managed import ChunkOutput, ManagedPart, ResetService
from pi05_ros.ros.policy_parts.policy_host import PolicyHost
from pi05_ros.ros.policy_parts.prompt_topic import PromptTopic
from pi05_ros.ros.policy_parts.subscriptions import Subscriptions
from pi05_ros.ros.topic_fit import TopicFit
from pi05_ros.runtime.edge_log import EdgeLog
from pi05_ros.runtime.inference import PolicyLike
from pi05_ros.runtime.large_buffers import return_large_buffers
from pi05_ros.runtime.parameters import PolicyParameters
from pi05_ros.runtime.policy_loading import host_policy
from pi05_ros.runtime.refusal import is_plain_reason, reason
from pi05_ros.runtime.statistics import Statistics
from pi05_ros.runtime.text import first_line, printable

SUCCESS = TransitionCallbackReturn.SUCCESS
FAILURE = TransitionCallbackReturn.FAILURE
ERROR = TransitionCallbackReturn.ERROR

_LABELS = {
    PolicyStatus.STATE_UNCONFIGURED: "unconfigured",
    PolicyStatus.STATE_INACTIVE: "inactive",
    PolicyStatus.STATE_ACTIVE: "active",
    PolicyStatus.STATE_FINALIZED: "finalized",
}


class PolicyNode(LifecycleNode):
    """Lifecycle node `pi05_policy`.

    Args:
        policy_factory: makes the policy from the parameters, in the worker thread.
        stop: set when the process has been asked to end; configure gives up then.
        **kwargs: of rclpy's Node (namespace, parameter_overrides, ...).

    """

    def __init__(
        self,
        *,
        policy_factory: Callable[[PolicyParameters], PolicyLike] = host_policy,
        stop: threading.Event | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__("pi05_policy", **kwargs)
        self._primary_state = PolicyStatus.STATE_UNCONFIGURED
        self._message = ""
        self._next_report_s = 0.0
        self._engine_problem = ""
        self._library_logs = LibraryLogs(self)
        self._statistics = Statistics()
        self._log = EdgeLog(self.get_logger())
        self._parts: list[ManagedPart] = []
        self._params = ParameterServer(self, self._on_parameters)
        self._host = PolicyHost(
            self, policy_factory, stop or threading.Event(), self._while_loading,
            self._on_worker_idle, self._statistics,
        )  # fmt: skip
        self._output = ChunkOutput(self)
        self._intake = Subscriptions(self, self._host, lambda: self._loop.on_sample(), self._log)
        self._prompt = PromptTopic(
            self, lambda: self._params.current, lambda: self._host.default_prompt
        )
        self._loop = TimedLoop(
            self, self._host, self._intake, self._output.publish,
            lambda: self._params.current, lambda: self._prompt.in_use, self._statistics, self._log,
        )  # fmt: skip
        # Configured and activated in this order, taken down in the reverse one.
        self._parts = [
            self._host, self._output, self._intake, self._loop, self._prompt,
            ResetService(self, self._loop.reset),
        ]  # fmt: skip
        self._status = StatusPublisher(self)
        self._fit = TopicFit(self)
        self._diagnostics = diagnostics.Diagnostics()
        self._diagnostics_publisher = self.create_publisher(
            DiagnosticArray, "/diagnostics", qos.DIAGNOSTICS
        )
        # Monotonic: diagnostics have to say so when simulated time stands still.
        self._diagnostics_timer = self.create_timer(
            diagnostics.PERIOD_S,
            self._once_a_second,
            clock=Clock(clock_type=ClockType.STEADY_TIME),
        )
        process.guard_change_state(self)
        self._publish_status()

    # -- transitions -----------------------------------------------------------------------

    def on_configure(self, state: Any) -> TransitionCallbackReturn:
        """Load and warm up the policy, create topics; FAILURE for anything a user can fix."""
        try:
            parameters = self._params.validated()
            for part in self._parts:
                part.configure(parameters)
        except Exception as error:
            if not is_plain_reason(error):
                return self._unexpected("configure")
            self._tear_down()
            self._refuse(f"configure failed: {reason(error)}")
            return FAILURE
        info = self._host.policy.info
        self.get_logger().info(
            printable(
                f"configured: {info.checkpoint} for {info.robot}, {info.backend} on {info.device}"
                + (f" ({info.backend_reason})" if info.backend_reason else "")
            )
        )
        age_s = process.age_s()
        self.get_logger().info(f"configured {age_s:.1f} s after the process started")
        if info.random_weights:
            self.get_logger().warning("the weights are random: do not move a robot with them")
        self._enter(PolicyStatus.STATE_INACTIVE)
        return SUCCESS

    def on_activate(self, state: Any) -> TransitionCallbackReturn:
        """Empty the buffers, unmute the publisher, start ticking."""
        try:
            result = super().on_activate(state)
            for part in self._parts:
                part.activate()
        except Exception:
            return self._unexpected("activate")
        self._enter(PolicyStatus.STATE_ACTIVE)
        return result

    def on_deactivate(self, state: Any) -> TransitionCallbackReturn:
        """Stop ticking, let a running inference end (bounded) and drop its result."""
        try:
            self._deactivate()
            result = super().on_deactivate(state)
        except Exception:
            return self._unexpected("deactivate")
        self._enter(PolicyStatus.STATE_INACTIVE)
        return result

    def on_cleanup(self, state: Any) -> TransitionCallbackReturn:
        """Destroy topics, free the policy."""
        try:
            if not self._tear_down():
                self._refuse("cleanup refused: an inference is still running")
                return FAILURE
        except Exception:
            return self._unexpected("cleanup")
        self._enter(PolicyStatus.STATE_UNCONFIGURED)
        return SUCCESS

    def on_shutdown(self, state: Any) -> TransitionCallbackReturn:
        """Deactivate and clean up from any state; every step is tried."""
        try:
            self._tear_down()
        except Exception:
            self._report_traceback("shutdown")
        self._enter(PolicyStatus.STATE_FINALIZED)
        return SUCCESS

    def on_error(self, state: Any) -> TransitionCallbackReturn:
        """Tear down; unconfigured if that worked, finalized if not."""
        try:
            clean = self._tear_down()
        except Exception:
            self._report_traceback("error handling")
            clean = False
        message = self._message
        self._enter(
            PolicyStatus.STATE_UNCONFIGURED if clean else PolicyStatus.STATE_FINALIZED, message
        )
        return SUCCESS if clean else FAILURE

    def end(self) -> bool:
        """Shut down for the end of the process; False if the worker had to be left behind."""
        try:
            if self._primary_state != PolicyStatus.STATE_FINALIZED:
                self.trigger_shutdown()
        except Exception:
            self._report_traceback("shutdown")
        self._publish_status(force=True)
        self._status.flush(0.5)
        self._library_logs.detach()
        return self._host.released

    def _deactivate(self) -> None:
        """Deactivate the parts and give a running inference its time to end."""
        for part in reversed(self._parts):
            part.deactivate()
        timeout_s = self._params.current.stop_timeout_s
        if not self._host.wait_idle(timeout_s):
            self.get_logger().warning(
                f"the inference in flight did not end within {timeout_s:g} s; its result will "
                "be dropped"
            )

    def _tear_down(self) -> bool:
        """Release everything that exists; False if a worker still computes (policy is kept)."""
        self._deactivate()
        # A running inference had its time; this is for the end of a job.
        if not self._host.wait_idle(0.2):
            return False
        for part in reversed(self._parts):
            part.cleanup()
        return True

    # -- callbacks -------------------------------------------------------------------------

    def _on_parameters(self, parameters: PolicyParameters) -> None:
        for part in self._parts:
            part.apply(parameters)
        self._publish_status()

    def _on_worker_idle(self) -> None:
        self._loop.on_worker_idle()
        if self._host.problem != self._engine_problem:
            self._engine_problem = self._host.problem
            self._message = self._engine_problem
            self._publish_status()
            self._publish_diagnostics()

    def _while_loading(self) -> None:
        """Answer and report while `on_configure` keeps the executor from doing so."""
        process.answer_state_requests(self)
        if time.monotonic() >= self._next_report_s:
            self._publish_diagnostics()

    def _once_a_second(self) -> None:
        self._intake.follow_publishers()
        self._fit.look()
        self._intake.take()  # ages and rates are of now, also between ticks and while inactive
        self._publish_diagnostics()

    def _publish_diagnostics(self) -> None:
        self._next_report_s = time.monotonic() + diagnostics.PERIOD_S
        now = self.get_clock().now()
        context = diagnostics.Context(
            node=self.get_fully_qualified_name(),
            active=self._primary_state == PolicyStatus.STATE_ACTIVE,
            state=_LABELS[self._primary_state] + (f": {self._message}" if self._message else ""),
            parameters=self._params.current,
            info=self._host.info,
            health=self._host.health(),
            problem=self._host.problem,
            unheard=self._fit.text,
        )
        array = self._diagnostics.build(
            context,
            self._intake.inputs,
            self._statistics,
            now.nanoseconds,
            time.monotonic_ns(),
        )
        array.header.stamp = time_msg(now.nanoseconds)
        self._diagnostics_publisher.publish(array)

    # -- status ----------------------------------------------------------------------------

    def _enter(self, state: int, message: str = "") -> None:
        self._primary_state = state
        self._message = message
        self._publish_status()

    def _refuse(self, text: str) -> None:
        self._message = text
        self.get_logger().error(text)
        self._publish_status()

    def _unexpected(self, transition: str) -> TransitionCallbackReturn:
        """Log an exception of a transition callback; rclpy itself swallows it."""
        self._report_traceback(transition)
        self._message = f"{transition} failed: {first_line(sys.exc_info()[1])}"
        return ERROR

    def _report_traceback(self, transition: str) -> None:
        self.get_logger().error(printable(f"in {transition}: {traceback.format_exc()}"))

    def _publish_status(self, *, force: bool = False) -> None:
        if not self._parts:
            return  # still being made
        try:
            self._status.publish(
                status_message(
                    self._primary_state,
                    self._params.current,
                    self._host.info,
                    self._loop.policy_id,
                    self._message,
                    self._prompt.in_use,
                ),
                force=force,
            )
        except Exception:  # a status that cannot be sent must not end a transition
            self._report_traceback("publishing the status")


def main(args: list[str] | None = None) -> int:
    """Run the node until SIGINT or SIGTERM."""
    return_large_buffers()
    return process.run(lambda stop: PolicyNode(stop=stop), args)


if __name__ == "__main__":
    sys.exit(main())
