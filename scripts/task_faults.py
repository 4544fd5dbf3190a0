"""Every state of a task and what may happen in it, with real processes on the simulated arm.

    python scripts/task_faults.py                          # with .venv/ros_env.sh sourced
    python scripts/task_faults.py --states running --events "kill task,kill engine"

Simulated arm, policy node with `isolation:=process`, executor node (permission and heartbeat
needed) and task node are processes in real time; this one sends goals, takes over, and kills.
After each event it checks: the goal has the result it must have, or none where the task node was
killed; the arm has come to rest; nobody has permission; no engine is left over; and, once what
died was started again, the next goal runs. Prints a table; exit code 1 if a check fails.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from lifecycle_msgs.srv import ChangeState
from pi05_ros.action import RunPolicy
from pi05_ros.msg import ExecutorStatus, TaskStatus
from rclpy.action import ActionClient
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import JointState
from std_srvs.srv import Trigger

from pi05_ros.resources import config_dir
from pi05_ros.ros import qos
from pi05_ros.ros.processes.bring_up import bring_up
from pi05_ros.ros.processes.children import Child, Children, ros_environment
from pi05_ros.sim.evaluation.evaluate import LIMITS_FILE
from pi05_ros.sim.training.shipped import CHECKPOINT
from pi05_ros.tables import markdown_table

PATIENCE_S = 180.0
SETTLED_S = 0.5
KEPT_S = 15.0
"""Longest time that a person keeps the arm after a death; longer than status_timeout_s."""
LEASE_S = 25.0
"""A node that was killed looks alive to others for so long at most."""
STILL = 1e-6  # rad between two commands of an arm that is held
ACTIVATE, DEACTIVATE = 3, 4
STATES = ("idle", "preparing", "running", "taken over", "ending")
ENDED = {"cancelled"}
EVENTS: dict[str, set[str]] = {
    "cancel": {"cancelled"},
    "new goal": {"cancelled"},
    "deactivate": {"cancelled"},
    "SIGTERM task": {"cancelled"},
    "kill task": set(),
    "kill engine": {"fault"},
    "kill policy": {"fault"},
    "kill executor": {"fault"},
}
"""Event -> reasons that the result may have, while the task does not end anyway."""
MODULES = {
    "arm": ("pi05_ros.sim.arm.driver_node", {
        "task": "push_blue", "width": 112, "height": 112, "joint_rate_hz": 60.0,
        "image_rate_hz": 10.0, "publish_prompt": False,
    }),
    "policy": ("pi05_ros.ros.policy_node", {
        "checkpoint": str(CHECKPOINT), "robot": "sim_arm", "device": "cpu", "threads": 1,
        "rate_hz": 4.0, "denoise_steps": 2, "isolation": "process", "engine_timeout_s": 120.0,
        "prompt": "push the blue block to the left", "max_age_s": 2.0, "max_skew_s": 1.0,
        "max_answer_age_s": 3.0,
    }),
    "executor": ("pi05_ros.ros.executor_node", {
        "limits_file": str(config_dir() / LIMITS_FILE), "require_enable": True,
        "heartbeat_timeout_s": 8.0, "max_state_age_s": 2.0,
    }),
    "task": ("pi05_ros.ros.task.task_node", {
        "autostart": True, "heartbeat_hz": 10.0, "feedback_hz": 20.0, "status_timeout_s": 5.0,
        "chunk_timeout_s": 5.0, "step_timeout_s": 30.0, "first_chunk_timeout_s": 60.0,
    }),
}  # fmt: skip


class TaskOperator(Node):
    """Sends goals, takes over, and notes what the nodes say and command."""

    def __init__(self) -> None:
        super().__init__("operator")
        self.action = ActionClient(self, RunPolicy, "/pi05_task/run_policy")
        self.teleop = self.create_publisher(JointState, "/pi05_executor/teleop", 1)
        self.status = ExecutorStatus()
        self.task = TaskStatus()
        self.feedback = ""
        self.steering = False
        self.commands: list[tuple[float, np.ndarray]] = []
        listen = self.create_subscription
        listen(ExecutorStatus, "/pi05_executor/executor_status", self._on_status, qos.LATCHED)
        listen(TaskStatus, "/pi05_task/status", self._on_task, qos.LATCHED)
        listen(JointState, "/pi05_executor/joint_commands", self._on_command, 100)
        self.create_timer(0.05, self._steer)

    def _on_status(self, message: ExecutorStatus) -> None:
        self.status = message

    def _on_task(self, message: TaskStatus) -> None:
        self.task = message

    def _on_command(self, message: JointState) -> None:
        self.commands.append((time.monotonic(), np.asarray(message.position)))

    def _steer(self) -> None:
        if self.steering:
            self.teleop.publish(JointState(name=["joint2"], position=[0.6]))

    def at_rest(self) -> bool:
        """Commands have not changed for a while, or have stopped."""
        now = time.monotonic()
        last = [values for at, values in self.commands if at > now - SETTLED_S]
        return not last or bool(np.ptp(last, axis=0).max() < STILL)


class TaskFaults:
    """The processes and one case after the other."""

    def __init__(self, children: Children, operator: TaskOperator) -> None:
        self._children, self._operator = children, operator
        self._spinner = SingleThreadedExecutor()
        self._spinner.add_node(operator)
        self._running: dict[str, Child] = {}
        for name in MODULES:
            self._start(name)

    def _start(self, name: str) -> None:
        module, values = MODULES[name]
        words = [w for k, v in values.items() for w in ("-p", f"{k}:={json.dumps(v)}")]
        self._running[name] = self._children.start_module(name, module, "--ros-args", *words)
        if name == "policy":
            self._spinner.remove_node(self._operator)
            bring_up(self._operator, "/pi05_policy", PATIENCE_S, lambda: None)
            self._spinner.add_node(self._operator)

    def _wait(self, condition: Callable[[], bool], what: str, limit_s: float = PATIENCE_S) -> None:
        end = time.monotonic() + limit_s
        while not condition():
            self._spinner.spin_once(timeout_sec=0.02)
            self._children.check()
            if time.monotonic() > end:
                status = self._operator.status
                raise TimeoutError(f"{what}; executor: mode {status.mode}, {status.reason}")

    def _call(self, kind: Any, name: str, request: Any) -> Any:
        client = self._operator.create_client(kind, name)
        try:
            while True:  # a server may not know a client yet that knows the server
                self._wait(client.service_is_ready, f"{name} is not there")
                future = client.call_async(request)
                with contextlib.suppress(TimeoutError):
                    self._wait(future.done, name, 2.0)
                    return future.result()
        finally:
            self._operator.destroy_client(client)

    def _transition(self, number: int) -> None:
        request = ChangeState.Request()
        request.transition.id = number
        self._call(ChangeState, "/pi05_task/change_state", request)

    def _engine(self) -> int:
        tasks = Path(f"/proc/{self._running['policy'].process.pid}/task")
        found = [
            pid for task in tasks.iterdir() for pid in (task / "children").read_text().split()
        ]
        return int(found[0]) if found else 0

    def _send(self) -> Any:
        """A handle, None if the goal was refused."""
        self._wait(self._operator.action.server_is_ready, "no action server")
        self._operator.feedback = ""

        def note(message: Any) -> None:
            self._operator.feedback = message.feedback.state

        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:  # a server that was killed looks ready for some seconds
            goal = RunPolicy.Goal(time_limit_s=600.0)
            future = self._operator.action.send_goal_async(goal, note)
            with contextlib.suppress(TimeoutError):
                self._wait(future.done, "", 5.0)
                handle = future.result()
                return handle if handle.accepted else None
        raise TimeoutError("no answer to a goal")

    def _moving(self) -> bool:
        following = self._operator.status.mode == ExecutorStatus.MODE_FOLLOWING
        return self._operator.feedback == "running" and following

    def _begin(self) -> tuple[Any, Any]:
        """Handle and future of the result of a goal that runs; not all is heard at once."""
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            handle = self._send()
            if handle is not None:
                future = handle.get_result_async()
                self._wait(lambda f=future: f.done() or self._moving(), "no motion")
                if not future.done():
                    return handle, future
                last = future.result().result.message
            else:
                last = f"refused: {self._operator.task.last_refused}"
            deadline = time.monotonic() + 1.0
            self._wait(lambda d=deadline: time.monotonic() > d, "")
        raise TimeoutError(f"no task begins: {last}")

    def case(self, state: str, event: str) -> tuple[str, float]:
        """The result's reason ("none", "-" in idle) and seconds until the arm was at rest.

        Raises:
            AssertionError, TimeoutError: a check failed.

        """
        operator, handle, future = self._operator, None, None
        engine = self._engine()
        if state == "preparing":
            os.kill(engine, signal.SIGSTOP)  # so that no chunk comes
            handle = self._send()
            assert handle is not None, operator.task.last_refused
            future = handle.get_result_async()
            self._wait(lambda: operator.feedback == "preparing", "no feedback")
        elif state != "idle":
            handle, future = self._begin()
        if state == "taken over":
            operator.steering = True
            self._wait(lambda: operator.feedback == "taken over", "not taken over")
        elif state == "ending":
            handle.cancel_goal_async()
        began = time.monotonic()
        self._happen(event, state, handle, engine)
        if event == "kill task":
            operator.steering = False
            reason = "none"
        else:
            if state == "taken over" and event.startswith("kill"):  # a death shows after a while
                with contextlib.suppress(TimeoutError):
                    self._wait(future.done, "", KEPT_S)
            operator.steering = False
            if state == "preparing" and event == "kill engine":  # it may begin with the next one
                self._wait(
                    lambda: future.done() or self._moving(), "the task neither ends nor begins"
                )
                handle.cancel_goal_async()
            reason = "-"
            if future is not None:
                self._wait(future.done, f"no result after {event} in {state}")
                reason = future.result().result.termination_reason
                soon = state == "ending" or (state, event) == ("preparing", "kill engine")
                allowed = EVENTS[event] | (ENDED if soon else set())
                message = future.result().result.message
                assert reason in allowed, f"{reason}: {message}"
        if state == "preparing":
            with contextlib.suppress(ProcessLookupError):
                os.kill(engine, signal.SIGCONT)
        self._wait(operator.at_rest, "the arm does not come to rest")
        rest_s = max([began, *(at for at, _ in self._changes())]) - began
        if event == "kill policy":
            self._wait(lambda: not Path(f"/proc/{engine}").exists(), "the engine is left over")
        self._mend(event)
        status = operator.status
        assert not status.enabled or event == "kill task", "permission is left"
        self.next_runs()
        return reason, rest_s

    def _changes(self) -> list[tuple[float, np.ndarray]]:
        commands = self._operator.commands
        return [b for a, b in itertools.pairwise(commands)
                if np.abs(a[1] - b[1]).max() > STILL]  # fmt: skip

    def _happen(self, event: str, state: str, handle: Any, engine: int) -> None:
        if event == "cancel" and handle is not None:
            handle.cancel_goal_async()
        elif event == "new goal" and handle is not None:
            if state != "ending":  # there the next one may be taken already
                assert self._send() is None, "a second goal was taken"
            handle.cancel_goal_async()
        elif event == "deactivate":
            self._transition(DEACTIVATE)
        elif event == "SIGTERM task":
            self._kill("task", signal.SIGTERM)
        elif event == "kill engine":
            os.kill(engine, signal.SIGKILL)
        elif event.startswith("kill "):
            self._kill(event.removeprefix("kill "), signal.SIGKILL)

    def _kill(self, name: str, number: int) -> None:
        child = self._running[name]
        child.expected_to_end = True
        os.kill(child.process.pid, number)

    def _mend(self, event: str) -> None:
        """Start what died, and settle what only a person settles."""
        operator = self._operator
        if event == "deactivate":
            self._transition(ACTIVATE)
        name = {"SIGTERM task": "task", "kill engine": ""}.get(event, event.removeprefix("kill "))
        if name in self._running:
            child = self._running[name]
            self._wait(lambda: child.process.poll() is not None, f"{name} does not end")
            if event == "SIGTERM task":
                assert child.process.returncode == 0, child.tail()
            elif name == "task":  # the heartbeat is gone, which is a fault
                self._wait(lambda: bool(operator.status.fault), "the executor goes on")
            with contextlib.suppress(TimeoutError):  # or requests would go to the dead one
                node, limit_s = f"pi05_{name}", 0.0 if event == "SIGTERM task" else LEASE_S
                self._wait(lambda: node not in operator.get_node_names(), "", limit_s)
            if name == "executor":
                operator.status = ExecutorStatus()
            self._start(name)
            self._wait(lambda: operator.status.mode != 0, "no executor")
        self._wait(lambda: self._engine() > 0, "no engine")
        if operator.status.fault:
            self._call(Trigger, "/pi05_executor/resume", Trigger.Request())
            self._wait(lambda: not operator.status.fault, "the fault stays")

    def next_runs(self) -> None:
        """A goal begins, the arm moves, and a cancel ends it."""
        handle, future = self._begin()
        handle.cancel_goal_async()
        self._wait(future.done, "no result of the next goal")
        assert future.result().result.termination_reason == "cancelled"
        self._operator.commands.clear()
        self._wait(lambda: not self._operator.status.enabled, "permission is left")


def run(args: argparse.Namespace) -> int:
    """All cases, and the table."""
    environment, domain = ros_environment()
    rclpy.init(args=[], domain_id=domain, signal_handler_options=SignalHandlerOptions.NO)
    operator = TaskOperator()
    rows, failures = [], []
    try:
        with Children(environment, args.out / "logs") as children:
            faults = TaskFaults(children, operator)
            faults.next_runs()
            for state in args.states:
                row = [state]
                for event in args.events:
                    try:
                        reason, rest_s = faults.case(state, event)
                        row.append(f"{reason}, {rest_s:.1f}")
                    except (AssertionError, TimeoutError) as error:
                        failures.append(f"{state}, {event}: {error}")
                        row.append("FAILED")
                    print(f"{state}, {event}: {row[-1]}", flush=True)
                    if failures:
                        break
                rows.append(row + [""] * (len(args.events) + 1 - len(row)))
                if failures:
                    break
    finally:
        operator.destroy_node()
        rclpy.shutdown()
    print(markdown_table(("state", *args.events), rows))
    for failure in failures:
        print(f"FAILED: {failure}", file=sys.stderr)
    return 1 if failures else 0


def main() -> int:
    """Read the options."""
    parser = argparse.ArgumentParser(description="faults in every state of a task, real processes")
    parser.add_argument("--states", default=",".join(STATES))
    parser.add_argument("--events", default=",".join(EVENTS))
    parser.add_argument("--out", type=Path, default=Path("out/task_faults"))
    args = parser.parse_args()
    for name, known in (("states", STATES), ("events", EVENTS)):
        words = getattr(args, name).split(",")
        if unknown := sorted(set(words) - set(known)):
            parser.error(f"--{name} {', '.join(unknown)}; accepted: {', '.join(known)}")
        setattr(args, name, words)
    args.out.mkdir(parents=True, exist_ok=True)
    return run(args)


if __name__ == "__main__":
    sys.exit(main())
