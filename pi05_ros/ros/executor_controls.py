"""How others stop, permit, slow down and take over the arm of the executor node."""

from __future__ import annotations

from collections.abc import Callable

from rcl_interfaces.msg import SetParametersResult
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile
from sensor_msgs.msg import JointState
from std_msgs.msg import Bool, Empty
from std_srvs.srv import SetBool, Trigger
from trajectory_msgs.msg import JointTrajectory

from pi05_ros.execution.executor import Executor
from pi05_ros.ros import qos

# A publisher of `ros2 topic pub` is not latched and a latched one may have spoken before: one
# subscription of each kind hears both.
_VOLATILE = QoSProfile(depth=10)


class ExecutorControls:
    """Services `~/stop`, `~/resume`, `~/enable`, `~/take_over`, `~/hold`; topics `~/halt`,
    `~/heartbeat`, `~/teleop`; the parameters `speed_scale` and `hold_chunks`.

    Args:
        node: its owner.
        core: what is controlled.
        teleop_type: message type of `~/teleop`, "joint_state" or "joint_trajectory".
        on_change: called after each of them, to publish the status.

    """

    def __init__(
        self, node: Node, core: Executor, teleop_type: str, on_change: Callable[[], None]
    ) -> None:
        self._node = node
        self._core = core
        self._on_change = on_change
        self._said = False
        node.create_service(Trigger, "~/stop", self._stop)
        node.create_service(Trigger, "~/resume", self._resume)
        node.create_service(SetBool, "~/enable", self._enable)
        node.create_service(SetBool, "~/take_over", self._take_over)
        node.create_service(Trigger, "~/hold", self._hold)
        for profile in (_VOLATILE, qos.LATCHED):
            node.create_subscription(Bool, "~/halt", self._halt, profile)
        node.create_subscription(Empty, "~/heartbeat", self._beat, qos.INPUT)
        if teleop_type == "joint_trajectory":
            node.create_subscription(JointTrajectory, "~/teleop", self._teleop_points, qos.INPUT)
        else:
            node.create_subscription(JointState, "~/teleop", self._teleop_state, qos.INPUT)
        self._intervention = node.create_publisher(Bool, "~/intervention", qos.LATCHED)
        self._intervention.publish(Bool(data=False))
        node.add_on_set_parameters_callback(self._set)

    def tell_intervention(self) -> None:
        """Publish whether a person is in charge, when that changes; call it in every tick."""
        if self._core.intervention != self._said:
            self._said = self._core.intervention
            self._intervention.publish(Bool(data=self._said))
            self._on_change()

    @property
    def _now_ns(self) -> int:
        return int(self._node.get_clock().now().nanoseconds)

    def _stop(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._core.stop("stop requested")
        response.success, response.message = True, "braking"
        self._on_change()
        return response

    def _resume(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        remaining = self._core.resume()
        response.success = not remaining
        response.message = remaining or "following the next chunk"
        self._on_change()
        return response

    def _enable(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        self._core.interlocks.enabled = request.data
        self._core.hold_until_enabled = False
        response.success = True
        response.message = self._core.interlocks.reason or "enabled"
        self._on_change()
        return response

    def _hold(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        """Follow no chunk until `~/enable` is called: who asked for it may be gone by then."""
        self._core.hold_until_enabled = True
        response.success, response.message = True, "chunks are held until ~/enable is called"
        self._on_change()
        return response

    def _take_over(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        self._core.teleop.held = request.data
        response.success = True
        response.message = "braking until a teleop target comes" if request.data else "handed back"
        self._on_change()
        return response

    def _halt(self, message: Bool) -> None:
        self._core.interlocks.halted = message.data
        self._on_change()

    def _beat(self, _: Empty) -> None:
        self._core.interlocks.beat(self._now_ns)

    def _teleop_state(self, message: JointState) -> None:
        self._core.teleop.offer(message.name, message.position, self._now_ns)

    def _teleop_points(self, message: JointTrajectory) -> None:
        positions = message.points[-1].positions if message.points else []
        self._core.teleop.offer(message.joint_names, positions, self._now_ns)

    def _set(self, parameters: list[Parameter]) -> SetParametersResult:
        for parameter in parameters:
            value = parameter.value
            if parameter.name == "hold_chunks":
                self._core.hold_chunks = bool(value)
            if parameter.name != "speed_scale":
                continue
            good = isinstance(value, int | float) and not isinstance(value, bool)
            if not good or not 0 <= value <= 1:
                return SetParametersResult(
                    successful=False, reason=f"speed_scale is {value}; accepted: 0 to 1"
                )
            self._core.speed_scale = float(value)
        return SetParametersResult(successful=True)
