"""The lifecycle node: camera and joint-state topics in, action chunks out.

Thin on purpose: parameters, subscriptions, ticks, worker, messages and diagnostics have modules
of their own; this one does the transitions. docs/node.md describes it for users.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.clock import Clock, ClockType
from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.exceptions import ParameterException
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.lifecycle import LifecycleNode, TransitionCallbackReturn
from rclpy.parameter import Parameter
from std_msgs.msg import String
from std_srvs.srv import Trigger

from pi05_ros.backends.engine import EngineHealth
from pi05_ros.msg import ActionChunk, PolicyStatus
from pi05_ros.ros import diagnostics, memory, process, qos
from pi05_ros.ros.inference_loop import InferenceLoop
from pi05_ros.ros.lifecycle_guard import guard_change_state
from pi05_ros.ros.messages import time_msg
from pi05_ros.ros.parameter_server import ParameterServer
from pi05_ros.ros.status import StatusPublisher, status_message
from pi05_ros.ros.subscriptions import Sources
from pi05_ros.runtime.edge_log import EdgeLog
from pi05_ros.runtime.inference import PolicyLike
from pi05_ros.runtime.parameters import ParameterError, PolicyParameters
from pi05_ros.runtime.policy_loading import load_policy
from pi05_ros.runtime.statistics import Statistics
from pi05_ros.runtime.worker import Worker

SUCCESS = TransitionCallbackReturn.SUCCESS
FAILURE = TransitionCallbackReturn.FAILURE
ERROR = TransitionCallbackReturn.ERROR

MAX_PROMPT_CHARACTERS = 4096
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
        policy_factory: Callable[[PolicyParameters], PolicyLike] = load_policy,
        stop: threading.Event | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__("pi05_policy", **kwargs)
        self._policy_factory = policy_factory
        self._stop = stop or threading.Event()
        self._primary_state = PolicyStatus.STATE_UNCONFIGURED
        self._message = ""
        self._policy: PolicyLike | None = None
        self._worker: Worker | None = None
        self._denoiser: Worker | None = None  # with overlap
        self._sources: Sources | None = None
        self._loop: InferenceLoop | None = None
        self._chunk_publisher: Any = None
        self._prompt_subscriptions: list[Any] = []
        self._reset_service: Any = None
        self._worker_done: Any = None
        self._prompts_seen: deque[int] = deque(maxlen=16)
        self._statistics = Statistics()
        self._log = EdgeLog(self.get_logger())
        self._params = ParameterServer(self, self._on_parameters)
        self._status = StatusPublisher(self)
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
        guard_change_state(self)
        self._publish_status()

    # -- transitions -----------------------------------------------------------------------

    def on_configure(self, state: Any) -> TransitionCallbackReturn:
        """Load and warm up the policy, create topics; FAILURE for anything a user can fix."""
        try:
            parameters = self._params.validated()
            self._load(parameters)
            self._create_topics(parameters)
        except (ValueError, OSError, RuntimeError, ImportError, ParameterException) as error:
            self._tear_down()
            self._refuse(f"configure failed: {_one_line(error)}")
            return FAILURE
        except Exception:
            return self._unexpected("configure")
        assert self._policy is not None
        info = self._policy.info
        self.get_logger().info(
            f"configured: {info.checkpoint} for {info.robot}, {info.backend} on {info.device}"
            + (f" ({info.backend_reason})" if info.backend_reason else "")
        )
        if info.random_weights:
            self.get_logger().warning("the weights are random: do not move a robot with them")
        self._enter(PolicyStatus.STATE_INACTIVE)
        return SUCCESS

    def on_activate(self, state: Any) -> TransitionCallbackReturn:
        """Empty the buffers, unmute the publisher, start ticking."""
        try:
            assert self._loop is not None
            result = super().on_activate(state)
            self._log.clear()
            self._loop.start()
        except Exception:
            return self._unexpected("activate")
        self._enter(PolicyStatus.STATE_ACTIVE)
        return result

    def on_deactivate(self, state: Any) -> TransitionCallbackReturn:
        """Stop ticking, let a running inference end (bounded) and drop its result."""
        try:
            self._stop_loop()
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
            self.get_logger().error(f"in shutdown: {traceback.format_exc()}")
        self._enter(PolicyStatus.STATE_FINALIZED)
        return SUCCESS

    def on_error(self, state: Any) -> TransitionCallbackReturn:
        """Tear down; unconfigured if that worked, finalized if not."""
        try:
            clean = self._tear_down()
        except Exception:
            self.get_logger().error(f"in error handling: {traceback.format_exc()}")
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
            self.get_logger().error(f"in shutdown: {traceback.format_exc()}")
        self._publish_status(force=True)
        self._status.flush(0.5)
        return self._worker is None

    # -- resources -------------------------------------------------------------------------

    def _load(self, parameters: PolicyParameters) -> None:
        """Load and warm up in the worker thread, so that signals are served meanwhile."""
        self._worker_done = self.create_guard_condition(self._on_worker_idle)
        self._worker = Worker(self._wake)

        def load() -> PolicyLike:
            policy = self._policy_factory(parameters)
            policy.warm_up()
            return policy

        if parameters.overlap:
            self._denoiser = Worker(name="pi05_denoise")
        task = self._worker.submit(load)
        assert task is not None
        while not task.done.wait(0.05):
            if self._stop.is_set():
                raise RuntimeError("the process was asked to end while the policy was loading")
        if task.error is not None:
            raise task.error
        self._policy = task.result

    def _create_topics(self, parameters: PolicyParameters) -> None:
        assert self._policy is not None
        assert self._worker is not None
        robot = self._policy.robot
        roles = parameters.roles or robot.camera_roles
        _check_roles(roles, robot)
        self._chunk_publisher = self.create_lifecycle_publisher(
            ActionChunk,
            "~/action_chunk",
            qos.own(qos.CHUNK),
            qos_overriding_options=qos.overridable(),
        )
        self._sources = Sources(
            self, roles, robot.state_names, parameters, self._on_sample, self._log
        )
        self._loop = InferenceLoop(
            self,
            self._policy,
            self._worker,
            self._sources,
            self._chunk_publisher.publish,
            lambda: self._params.current,
            self._statistics,
            self._log,
            self._denoiser,
        )
        # A latched reader alone would not match ordinary publishers, an ordinary one alone would
        # miss what was latched before it came.
        self._prompt_subscriptions = [
            self.create_subscription(
                String, "prompt", self._on_prompt, qos.LATCHED,
                event_callbacks=SubscriptionEventCallbacks(use_default_callbacks=False),
            ),
            self.create_subscription(String, "prompt", self._on_prompt, qos.PROMPT),
        ]  # fmt: skip
        self._reset_service = self.create_service(Trigger, "~/reset", self._on_reset)

    def _stop_loop(self) -> None:
        if self._loop is None or self._worker is None:
            return
        self._loop.stop()
        timeout_s = self._params.current.stop_timeout_s
        if not self._wait_idle(timeout_s):
            self.get_logger().warning(
                f"the inference in flight did not end within {timeout_s:g} s; its result will "
                "be dropped"
            )

    def _wait_idle(self, timeout_s: float) -> bool:
        """Wait until no worker computes; False if that took longer than both together may."""
        end = time.monotonic() + timeout_s
        # In this order: the first hands its work to the second.
        workers = [worker for worker in (self._worker, self._denoiser) if worker is not None]
        return all(worker.wait_idle(max(0.0, end - time.monotonic())) for worker in workers)

    def _tear_down(self) -> bool:
        """Release everything that exists; False if a worker still computes (policy is kept)."""
        self._stop_loop()
        # A running inference had its time in _stop_loop; this is for the end of a job.
        if not self._wait_idle(0.2):
            return False
        self._loop = None
        if self._sources is not None:
            self._sources.destroy()
            self._sources = None
        while self._prompt_subscriptions:
            self.destroy_subscription(self._prompt_subscriptions.pop())
        if self._reset_service is not None:
            self.destroy_service(self._reset_service)
            self._reset_service = None
        if self._chunk_publisher is not None:
            self.destroy_lifecycle_publisher(self._chunk_publisher)
            self._chunk_publisher = None
        policy, self._policy = self._policy, None
        if self._denoiser is not None:
            self._denoiser.stop(1.0)
            self._denoiser = None
        if self._worker is not None:
            worker, self._worker = self._worker, None
            if policy is not None:
                task = worker.submit(policy.close)
                if task is not None:
                    task.done.wait(1.0)
            worker.stop(1.0)
        if self._worker_done is not None:
            self.destroy_guard_condition(self._worker_done)
            self._worker_done = None
        return True

    # -- callbacks -------------------------------------------------------------------------

    def _on_sample(self) -> None:
        if self._loop is not None:
            self._loop.on_sample()

    def _wake(self) -> None:
        """Worker thread: have `_on_worker_idle` called by the executor."""
        guard = self._worker_done
        if guard is not None:
            with contextlib.suppress(rclpy_implementation.InvalidHandle):
                guard.trigger()

    def _on_worker_idle(self) -> None:
        if self._loop is not None:
            self._loop.on_worker_idle()

    def _on_prompt(self, message: String, info: dict[str, Any]) -> None:
        # A latched message comes to both subscriptions, and again with every new configure.
        stamp = int(info.get("source_timestamp", 0))
        if stamp in self._prompts_seen:
            return
        if stamp:
            self._prompts_seen.append(stamp)
        text = message.data
        if len(text) > MAX_PROMPT_CHARACTERS:
            self.get_logger().warning(
                f"prompt of {len(text)} characters cut to {MAX_PROMPT_CHARACTERS}"
            )
            text = text[:MAX_PROMPT_CHARACTERS]
        self.set_parameters([Parameter("prompt", value=text)])

    def _on_reset(self, request: Any, response: Any) -> Any:
        assert self._loop is not None
        self._loop.reset()
        response.success = True
        response.message = "buffers emptied, seed counter at its start, running inference dropped"
        return response

    def _on_parameters(self, parameters: PolicyParameters) -> None:
        if self._sources is not None:
            self._sources.apply(parameters)
        if self._loop is not None:
            self._loop.apply(parameters)
        self._publish_status()

    def _once_a_second(self) -> None:
        if self._sources is not None:
            self._sources.follow_publishers()
        self._publish_diagnostics()

    def _publish_diagnostics(self) -> None:
        now = self.get_clock().now()
        info = self._policy.info if self._policy is not None else None
        precision = "/".join(
            (info.precision.vision, info.precision.prefill, info.precision.denoise)
        ) if info else ""  # fmt: skip
        context = diagnostics.Context(
            node=self.get_fully_qualified_name(),
            hardware_id=f"{info.robot} on {info.device}" if info else "",
            active=self._primary_state == PolicyStatus.STATE_ACTIVE,
            state=_LABELS[self._primary_state] + (f": {self._message}" if self._message else ""),
            parameters=self._params.current,
            backend=info.backend if info else "",
            backend_reason=info.backend_reason if info else "",
            precision=precision,
            device=str(info.device) if info else "",
            health=getattr(self._policy, "health", EngineHealth)(),
        )
        array = self._diagnostics.build(
            context,
            self._sources.inputs if self._sources is not None else None,
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
        self.get_logger().error(f"in {transition}: {traceback.format_exc()}")
        self._message = f"{transition} failed: {_one_line(sys.exc_info()[1])}"
        return ERROR

    def _publish_status(self, *, force: bool = False) -> None:
        self._status.publish(
            status_message(
                self._primary_state,
                self._params.current,
                self._policy.info if self._policy is not None else None,
                self._loop.policy_id if self._loop is not None else "",
                self._message,
                (self._policy.robot.default_prompt or "") if self._policy is not None else "",
            ),
            force=force,
        )


def _check_roles(roles: Any, robot: Any) -> None:
    unknown = [role for role in roles if role not in robot.camera_roles]
    if unknown:
        raise ParameterError(
            f"camera_roles names {', '.join(unknown)}; {robot.name} has "
            f"{', '.join(robot.camera_roles)}"
        )
    missing = [role for role in robot.required_roles if role not in roles]
    if missing:
        raise ParameterError(f"camera_roles lacks {', '.join(missing)}, which {robot.name} needs")


def _one_line(error: BaseException | None) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def main(args: list[str] | None = None) -> int:
    """Run the node until SIGINT or SIGTERM."""
    memory.return_large_buffers()
    return process.run(lambda stop: PolicyNode(stop=stop), args)


if __name__ == "__main__":
    sys.exit(main())
