"""From demonstration to deployment on the simulated arm, see docs/demonstration_to_deployment.md.

    python scripts/demonstration_to_deployment.py out/deployment [--episodes 3]

Records the scripted expert, makes a LeRobot dataset of it, compares a policy with what the expert
did, runs the policy on a task as the action RunPolicy, and writes OUT/report.json. Exit code 0:
the policy agrees and the task was done. Needs ROS 2 and the extras sim and dataset.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pi05_ros.cli.main import main as pi05
from pi05_ros.resources import config_dir
from pi05_ros.sim.evaluation.evaluate import LIMITS_FILE
from pi05_ros.sim.training import record
from pi05_ros.sim.training.shipped import CHECKPOINT

LOAD_S = 300.0
"""Longest wait for the nodes, real time."""
TASK_S = 20.0
"""Longest time for the task, simulated."""


def main(argv: Sequence[str] | None = None) -> int:
    """Do all steps; 1 if one fails."""
    parser = argparse.ArgumentParser(description="from demonstration to deployment")
    parser.add_argument("out", type=Path)
    parser.add_argument("--episodes", type=int, default=3)
    parser.add_argument("--checkpoint", default=str(CHECKPOINT), help="what was trained")
    parser.add_argument("--task", default="pick_red")
    parser.add_argument("--seed", type=int, default=100, help="scene of the task")
    args = parser.parse_args(argv)
    expert, dataset, compared = (args.out / name for name in ("expert", "dataset", "compare"))
    robot = ["--robot", "sim_arm"]
    report: dict[str, Any] = {"checkpoint": args.checkpoint, "episodes": args.episodes}
    if record.main([str(expert), "--episodes", str(args.episodes)]) != 0:
        return 1
    if pi05(["dataset", str(expert), *robot, "--out", str(dataset)]) != 0:
        return 1
    words = ["replay", str(dataset), "--against-demonstration", *robot, "-p", "threads=1"]
    code = pi05([*words, "--checkpoint", args.checkpoint, "--out", str(compared)])
    if code not in (0, 1):
        return 1
    agreement = json.loads((compared / "agreement.json").read_text())
    report["agreement"] = {key: agreement[key] for key in ("agrees", "errors", "faults")}
    if not agreement["agrees"]:
        print("the policy does not do what the expert did; it is not run")
    else:
        report["task"] = run_as_action(args)
    (args.out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    print(f"report          {args.out / 'report.json'}")
    return 0 if report.get("task", {}).get("outcome") == "success" else 1


def run_as_action(args: argparse.Namespace) -> dict[str, Any]:
    """Start driver, policy, executor and task node, send one goal, and return its result."""
    import rclpy
    from pi05_ros.action import RunPolicy
    from rclpy.action import ActionClient

    from pi05_ros.ros.processes.bring_up import bring_up
    from pi05_ros.ros.processes.children import Children, ros_environment

    environment, domain = ros_environment()
    rclpy.init(args=[], domain_id=domain)
    node = rclpy.create_node("deployment")
    client = ActionClient(node, RunPolicy, "/pi05_task/run_policy")
    try:
        with Children(environment, args.out / "logs") as children:
            for name, module, values in nodes(args):
                words = [w for k, v in values.items() for w in ("-p", f"{k}:={json.dumps(v)}")]
                children.start_module(name, module, "--ros-args", *words)
            bring_up(node, "/pi05_policy", LOAD_S, lambda: None)
            until = time.monotonic() + LOAD_S
            result = None
            while result is None or not begun(result):
                if result is not None:
                    print(f"not yet         {result.message}")
                    time.sleep(1.0)
                result = send(node, client, children, until)
    finally:
        client.destroy()
        node.destroy_node()
        rclpy.shutdown()
    told = {
        "termination_reason": result.termination_reason,
        "outcome": result.outcome,
        "message": result.message,
        "elapsed_s": result.elapsed_s,
        "chunks": result.chunks,
    }
    print(f"task            {args.task}, seed {args.seed}: {told}")
    return told


def begun(result: Any) -> bool:
    """Whether a task began: it does not before the task node has heard that all are ready."""
    return result.termination_reason != result.FAULT or result.elapsed_s > 0.0


def send(node: Any, client: Any, children: Any, until: float) -> Any:
    """Send the goal until it is accepted, and return its result."""
    from pi05_ros.action import RunPolicy

    while True:
        children.check()
        if time.monotonic() > until:
            raise TimeoutError("no task began; the logs say why")
        if not client.wait_for_server(timeout_sec=0.5):
            continue
        goal = RunPolicy.Goal(time_limit_s=TASK_S, end=RunPolicy.Goal.END_SUCCESS_TOPIC)
        handle = wait(node, children, client.send_goal_async(goal), until)
        if handle.accepted:
            return wait(node, children, handle.get_result_async(), until).result
        time.sleep(1.0)


def wait(node: Any, children: Any, future: Any, until: float) -> Any:
    """Result of a future."""
    import rclpy

    while not future.done():
        children.check()
        if time.monotonic() > until:
            raise TimeoutError("the task node does not answer; the logs say why")
        rclpy.spin_until_future_complete(node, future, timeout_sec=0.5)
    return future.result()


def nodes(args: argparse.Namespace) -> list[tuple[str, str, dict[str, Any]]]:
    """Name, module and parameters of the nodes; time is simulated and waits for them."""
    driver = {
        "task": args.task, "seed": args.seed, "lock_step": True, "joint_rate_hz": 60.0,
        "chunk_rate_hz": 4.0,
    }  # fmt: skip
    policy = {
        "checkpoint": args.checkpoint, "robot": "sim_arm", "rate_hz": 4.0, "threads": 1,
        "device": "cpu", "use_sim_time": True,
    }  # fmt: skip
    executor = {
        "limits_file": str(config_dir() / LIMITS_FILE), "require_enable": True,
        "use_sim_time": True,
    }  # fmt: skip
    task = {
        "autostart": True, "success_topic": "/sim_arm/task_done", "use_sim_time": True,
        "step_timeout_s": 60.0, "first_chunk_timeout_s": 60.0, "chunk_timeout_s": 60.0,
        "status_timeout_s": 60.0,
    }  # fmt: skip
    return [
        ("sim_arm", "pi05_ros.sim.arm.driver_node", driver),
        ("pi05_policy", "pi05_ros.ros.policy_node", policy),
        ("pi05_executor", "pi05_ros.ros.executor_node", executor),
        ("pi05_task", "pi05_ros.ros.task.task_node", task),
    ]


if __name__ == "__main__":
    sys.exit(main())
