"""`pi05 calibrate-delay`: asks, moves, measures, and writes parameters."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import rclpy
from rcl_interfaces.srv import GetParameters
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter, parameter_value_to_python
from std_srvs.srv import SetBool

from pi05_ros.execution.calibration.delay_estimate import DelayError, DelayEstimate
from pi05_ros.execution.calibration.delay_request import EARLIEST_S, DelayRequest
from pi05_ros.execution.calibration.delay_results import MeasuredDelays, compare, parameters_yaml
from pi05_ros.execution.calibration.sine_motion import SineMotion, SineRefusedError
from pi05_ros.execution.limit_sources.joint_limits import JointLimits
from pi05_ros.msg import ExecutorStatus
from pi05_ros.ros.calibration.delay_probe import DelayProbe
from pi05_ros.ros.executor_limits import limits_of_node
from pi05_ros.ros.executor_parameters import ExecutorParameters
from pi05_ros.runtime.parameter_specs import specs_of
from pi05_ros.small_files import write_atomically

PATIENCE_S = 30.0
Say = Callable[[str], None]


def measure(request: DelayRequest, say: Say) -> MeasuredDelays | None:
    """Measure with a node of its own in this process; None after a dry run.

    Raises:
        SineRefusedError, DelayError: why there is no result.

    """
    motion = request.check()
    if not request.dry_run and not request.enable:
        raise SineRefusedError("--enable is missing: without it nothing is moved (or --dry-run)")
    context = rclpy.Context()
    rclpy.init(context=context)
    try:
        probe = DelayProbe(
            request.executor,
            request.joint,
            request.cameras,
            context=context,
            namespace=request.namespace or None,
            parameter_overrides=[Parameter("use_sim_time", value=request.use_sim_time)],
        )
        spinner = SingleThreadedExecutor(context=context)
        spinner.add_node(probe)
        try:
            return DelayMeasurement(probe, spinner.spin_once, request, motion, say).run()
        finally:
            spinner.shutdown()
            probe.destroy_node()
    finally:
        rclpy.try_shutdown(context=context)


class DelayMeasurement:
    """One measurement with a probe that somebody spins.

    Args:
        probe: the node.
        spin: processes callbacks for up to so many seconds (keyword timeout_sec).
        request, motion: what to do.
        say: takes lines for the user.

    """

    def __init__(
        self,
        probe: DelayProbe,
        spin: Callable[..., None],
        request: DelayRequest,
        motion: SineMotion,
        say: Say,
    ) -> None:
        self._probe, self._spin, self._request = probe, spin, request
        self._motion, self._say = motion, say

    def run(self) -> MeasuredDelays | None:
        """Ask, check, move, compare."""
        probe, motion = self._probe, self._motion
        self._wait(lambda: probe.status is not None, "no executor_status came")
        self._wait(
            lambda: bool(probe.joint_states.values), f"no joint state of {probe.joint} came"
        )
        values = self._executor_parameters()
        limits, base = self._limits(values)
        row = limits.names.index(probe.joint)
        motion.check(
            float(base[row]), limits.lower[row], limits.upper[row], limits.velocity[row],
            limits.acceleration[row],
        )  # fmt: skip
        self._say(
            f"{probe.joint}: {base[row]:.3f} +- {motion.amplitude:g} at "
            f"{motion.frequency_hz:g} Hz for {motion.duration_s:.0f} s; at most "
            f"{motion.peak_velocity:.3f}/s (limit "
            f"{limits.velocity[row]:g}) and {motion.peak_acceleration:.3f}/s^2 (limit "
            f"{limits.acceleration[row]:g}); all other joints hold"
        )
        others = probe.other_policies()
        if others:
            raise SineRefusedError(f"{', '.join(others)} publishes chunks; deactivate it first")
        if self._request.dry_run:
            self._say("dry run: nothing was moved")
            return None
        # A status may come at any time of a control period.
        probe.allowed_lag_s += 1.0 / float(values["control_rate_hz"])
        with self._permission():
            self._move(limits, base)
        return self._compare(float(values.get("command_delay_s") or 0.0))

    def _move(self, limits: JointLimits, base: np.ndarray) -> None:
        probe = self._probe
        probe.begin(limits, base, self._motion)
        try:
            self._wait(
                lambda: (
                    probe.status is not None and probe.status.mode == ExecutorStatus.MODE_FOLLOWING
                ),
                "the executor does not follow",
            )
            probe.swing()
            patience = time.monotonic() + 20 * self._motion.duration_s + PATIENCE_S
            while not probe.over and not probe.problem:
                if time.monotonic() > patience:
                    raise DelayError("the node's clock stands still")
                self._spin(timeout_sec=0.05)
        finally:
            probe.end()
        if probe.problem:
            raise DelayError(probe.problem)

    def _compare(self, already_s: float) -> MeasuredDelays:
        probe, motion = self._probe, self._motion
        assert probe.start_s is not None
        reach = (EARLIEST_S, self._request.max_delay_s)
        return compare(
            motion, probe.start_s, probe.joint, probe.joint_states, probe.images, reach, already_s
        )

    def _wait(self, done: Callable[[], bool], problem: str) -> None:
        end = time.monotonic() + PATIENCE_S
        while not done():
            if time.monotonic() > end:
                status = self._probe.status
                reason = status.reason if status is not None else ""
                raise DelayError(f"{problem} within {PATIENCE_S:g} s{reason and ': '}{reason}")
            self._spin(timeout_sec=0.05)

    def _call(self, kind: Any, name: str, request: Any) -> Any:
        client = self._probe.create_client(kind, f"{self._request.executor}/{name}")
        try:
            self._wait(client.service_is_ready, f"no service {name} of the executor")
            future = client.call_async(request)
            self._wait(future.done, f"no answer of the executor to {name}")
            return future.result()
        finally:
            self._probe.destroy_client(client)

    def _executor_parameters(self) -> dict[str, Any]:
        names = list(specs_of(ExecutorParameters))
        answer = self._call(GetParameters, "get_parameters", GetParameters.Request(names=names))
        found = (parameter_value_to_python(value) for value in answer.values)
        return dict(zip(names, found, strict=False))

    def _limits(self, values: dict[str, Any]) -> tuple[JointLimits, np.ndarray]:
        """Limits as the executor has them, and where its joints are commanded or measured."""
        joints = tuple(name for name in values["joints"] if name)
        merged = limits_of_node(self._probe, ExecutorParameters(**{**values, "joints": joints}))
        limits, status = merged.limits, self._probe.status
        assert status is not None
        if self._probe.joint not in limits.names:
            raise SineRefusedError(
                f"joint {self._probe.joint} is not the executor's; accepted: "
                f"{', '.join(limits.names)}"
            )
        if list(status.joints) != list(limits.names):
            raise DelayError("the executor's joints are not those of its limits file here")
        here = list(status.commanded) or list(status.measured)
        self._wait(
            lambda: set(limits.names) <= set(self._probe.positions), "joint states lack joints"
        )
        measured = [self._probe.positions[name] for name in limits.names]
        return limits, np.array(here or measured)

    @contextlib.contextmanager
    def _permission(self) -> Iterator[None]:
        """Permission for the time of the motion, where the executor needs one."""
        status = self._probe.status
        assert status is not None
        if status.enabled:
            yield
            return
        self._call(SetBool, "enable", SetBool.Request(data=True))
        try:
            yield
        finally:
            self._call(SetBool, "enable", SetBool.Request(data=False))


def calibrate(request: DelayRequest, say: Say) -> int:
    """The command: measure, report, write."""
    result = measure(request, say)
    if result is None:
        return 0
    say(_line("command -> joint state", result.command, result.command_arrival))
    for topic, (stamped, arrived) in result.cameras.items():
        say(_line(f"joint state -> {topic}", stamped, arrived))
    if result.already_s:
        say(f"the executor makes up for {result.already_s:.3f} s already; both are written")
    text = parameters_yaml(result)
    if request.out is None:
        say(text.rstrip())
    else:
        write_atomically(request.out, text)
        say(f"wrote {request.out}")
    return 0


def _line(what: str, stamped: DelayEstimate, arrived: DelayEstimate) -> str:
    return (
        f"{what}: {1e3 * stamped.delay_s:.1f} ms by stamps, {1e3 * arrived.delay_s:.1f} ms by "
        f"arrival; correlation {stamped.correlation:.3f}, +- {1e3 * stamped.error_s:.1f} ms, "
        f"{stamped.samples} samples"
    )
