"""`pi05 calibrate-delay` on the simulated arm in lock-step, with injected delays."""

import time

import pytest
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter

from pi05_ros.cli.main import main
from pi05_ros.execution.calibration.delay_estimate import DelayError
from pi05_ros.execution.calibration.sine_motion import SineRefusedError
from pi05_ros.resources import config_dir
from pi05_ros.ros.calibration.delay_probe import DelayProbe
from pi05_ros.ros.calibration.measure_delays import DelayMeasurement, DelayRequest
from pi05_ros.ros.executor_node import ExecutorNode
from pi05_ros.ros.processes.domain import free_domain_id
from pi05_ros.sim.arm.driver_node import DriverNode

ARM_S = 0.070
"""The simulated arm's own: a control period ahead, and its servos' lag at 0.5 Hz."""
CAMERA = "base_camera/image_raw"


class Cell:
    """Driver, executor and probe in one thread; simulated time goes on as they can."""

    def __init__(self, request, **driver):
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=free_domain_id())
        made = {
            DriverNode: {
                "lock_step": True, "chunk_rate_hz": 0.0, "width": 96, "height": 72, **driver,
            },
            ExecutorNode: {
                "limits_file": str(config_dir() / "sim_arm_limits.yaml"), "use_sim_time": True,
                "strategy": "rtc", "require_enable": True,
            },
        }  # fmt: skip
        self.driver, self.executor_node = (
            kind(
                context=self.context,
                parameter_overrides=[Parameter(name, value=v) for name, v in values.items()],
            )
            for kind, values in made.items()
        )
        self.probe = DelayProbe(
            request.executor, request.joint, request.cameras, context=self.context,
            parameter_overrides=[Parameter("use_sim_time", value=True)],
        )  # fmt: skip
        self.nodes = [self.driver, self.executor_node, self.probe]
        self.spinner = SingleThreadedExecutor(context=self.context)
        for node in self.nodes:
            self.spinner.add_node(node)
        self.said = []
        self.session = DelayMeasurement(
            self.probe, self.spin, request, request.check(), self.said.append
        )

    def spin(self, timeout_sec=0.0):
        if self.driver.may_step():
            self.driver.tick()
        # Nobody is late: the next step waits until the others have seen the time of this one.
        patience = time.monotonic() + 60.0
        behind = True
        while behind and time.monotonic() < patience:
            self.spinner.spin_once(timeout_sec=0.001)
            behind = any(
                node.get_clock().now().nanoseconds / 1e9 < self.driver.world.time - 0.004
                for node in (self.executor_node, self.probe)
            )
        for _ in range(5):
            self.spinner.spin_once(timeout_sec=0.0005)

    def close(self):
        self.driver.world.close()
        self.spinner.shutdown()
        for node in self.nodes:
            node.destroy_node()
        rclpy.shutdown(context=self.context)


@pytest.fixture
def cell():
    made = []

    def make(request, **driver):
        made.append(Cell(request, **driver))
        return made[-1]

    yield make
    for item in made:
        item.close()


def test_injected_delays_are_found(cell):
    request = DelayRequest("joint1", True, amplitude=0.15, cycles=4, cameras=(CAMERA,))
    rig = cell(request, simulated_command_delay_s=0.2, simulated_camera_delay_s=0.15)
    found = rig.session.run()
    assert found.command.delay_s == pytest.approx(ARM_S + 0.2, abs=0.005)
    stamped, _ = found.cameras[CAMERA]
    assert stamped.delay_s == pytest.approx(0.15, abs=0.005)
    assert "at most" in rig.said[0]
    # Permission was for the motion alone.
    assert not rig.executor_node.core.interlocks.enabled


def test_nothing_moves_without_permission_and_a_halt_ends_it(cell):
    request = DelayRequest("joint1", dry_run=True)
    rig = cell(request, image_rate_hz=1.0)
    assert rig.session.run() is None
    assert rig.said[-1] == "dry run: nothing was moved"
    assert rig.executor_node.core.filter.position is None
    wrong = DelayMeasurement(
        DelayProbe("pi05_executor", "joint9", (), context=rig.context), rig.spin, request,
        request.check(), rig.said.append,
    )  # fmt: skip
    rig.nodes.append(wrong._probe)
    rig.spinner.add_node(wrong._probe)
    wrong._probe.joint_states.add(0.0, 0.0, 0.0)
    with pytest.raises(SineRefusedError, match="joint9 is not the executor's; accepted: joint1"):
        wrong.run()
    moving = DelayMeasurement(
        rig.probe, rig.spin, DelayRequest("joint1", True), request.check(), print
    )
    before = rig.probe.begin

    def begin(*args):
        before(*args)
        rig.probe.create_timer(1.0, lambda: setattr(locks, "halted", True))

    locks = rig.executor_node.core.interlocks
    rig.probe.begin = begin
    with pytest.raises(DelayError, match="halted"):
        moving.run()


def test_the_command_refuses_what_cannot_be(capsys):
    assert main(["calibrate-delay", "--joint", "j"]) == 2
    assert "--enable is missing" in capsys.readouterr().err
    assert main(["calibrate-delay", "--joint", "j", "--enable", "--frequency", "2"]) == 2
    assert "accepted: up to 0.64 Hz" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["calibrate-delay", "--enable"])
