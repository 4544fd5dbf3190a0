"""`pi05 demo`: the main job on this machine. Bag in, real nodes over DDS, chunks out."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pi05_ros.policy.robots.profile import RobotProfile
    from pi05_ros.runtime.parameters import PolicyParameters

RATE_SHARE = 0.9  # of the asked chunks that must arrive
FASTEST_HZ, SLOWEST_HZ = 10.0, 0.5  # of the rates that are chosen
LOAD = 3.0
"""So much longer may an inference take beside DDS, the player and the recorder on two cores."""
SLOW_SPEED = 0.1
"""Pace of a second try where no chunk came: a busy machine may not move images fast enough."""
PROBE_RUNS, PROBE_S = 10, 3.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="folder for results")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of the bag")
    parser.add_argument(
        "--rate",
        type=float,
        help="inferences per second, which must then be kept (default: what this machine can do, "
        "at most 10)",
    )
    parser.add_argument(
        "--checkpoint", default="random:tiny", help="random:tiny (default) or a checkpoint's path"
    )
    parser.add_argument("--robot", default="sim_arm", help="robot profile")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of the model")
    parser.add_argument(
        "--renderer", choices=("egl", "osmesa", "ray"), help="default: the first that works"
    )
    parser.add_argument("--fresh", action="store_true", help="render the bag again")


def run(args: argparse.Namespace) -> int:
    """Run the demo; 0 if the chunks came, 1 if they did not, 2 if it cannot run."""
    from pi05_ros.bags.bag import Bag, BagError
    from pi05_ros.replay.out_claim import claim
    from pi05_ros.replay.plots import require_matplotlib
    from pi05_ros.replay.run import choose, robot_of, run_online, write_files
    from pi05_ros.ros.processes.children import ros_environment
    from pi05_ros.runtime.parameters import PolicyParameters

    if not 1.0 <= args.seconds <= 600.0:
        raise BagError(f"--seconds is {args.seconds}; accepted: 1 to 600")
    started = time.monotonic()
    require_matplotlib()
    ros_environment()  # fails here, before any work, if there is no ROS
    values = {
        "checkpoint": args.checkpoint,
        "robot": args.robot,
        "rate_hz": FASTEST_HZ if args.rate is None else args.rate,
        "threads": args.threads,
    }
    parameters = PolicyParameters.from_values(values)
    robot = robot_of(parameters)
    _require_joints(robot)
    if args.rate is None:
        values["rate_hz"] = _rate_that_holds(parameters, robot)
        parameters = PolicyParameters.from_values(values)
    rate_hz = parameters.rate_hz
    title = f"pi05 demo: {args.checkpoint} on {args.robot}, {rate_hz:g} Hz asked, live over DDS"
    if args.checkpoint.startswith("random:"):
        title += " (random weights: the values mean nothing)"
        print(
            f"The policy has seeded random weights ({args.checkpoint}): what the chunks say means "
            "nothing, how they travel is real."
        )
    path = args.out / "bag"
    with claim(args.out):
        _make_bag(args, path)
        with Bag(path) as opened:
            chosen = choose(opened, robot, {})
        for speed in (1.0, *((SLOW_SPEED,) if args.rate is None else ())):
            outcome = run_online(
                path, chosen, values, parameters, args.out, speed=speed,
                say=lambda text: print(f"replay   {text}"),
            )  # fmt: skip
            if outcome.chunks:
                break
            print(f"replay   no chunk at {speed:g} times the recorded pace")
        written = write_files(outcome, args.out, chosen, path, True, title)
    summary = outcome.summary
    print("\n".join(summary.lines()))
    print("wrote           " + ", ".join(str(item) for item in written))
    if not outcome.chunks or (args.rate is not None and not summary.rate_kept(RATE_SHARE)):
        wanted = f"at least {RATE_SHARE:.0%} must come" if args.rate is not None else "none came"
        print(
            f"FAILED: {summary.chunks} chunks of {summary.expected:.0f} asked; {wanted}. "
            f"Logs: {args.out / 'logs'}",
            file=sys.stderr,
        )
        return 1
    kept = summary.rate_kept(RATE_SHARE)
    if not kept:
        print(
            f"note            {summary.chunks} chunks of {summary.expected:.0f} asked: the "
            "machine was busier during the replay than before it"
        )
    again = ["pi05", "replay", str(path), "--verify", str(outcome.bag)]
    again += ["--checkpoint", args.checkpoint, "--robot", args.robot]
    print("again           " + shlex.join([*again, "-p", f"threads={args.threads}"]))
    rate = "the asked rate" if kept else f"{summary.measured_hz:.1f} Hz"
    print(f"ok: chunks came at {rate} ({time.monotonic() - started:.0f} s in all)")
    return 0


def _rate_that_holds(parameters: PolicyParameters, robot: RobotProfile) -> float:
    """Inferences per second that the node can do here, from a few inferences in this process."""
    import numpy as np

    from pi05_ros.policy import Observation
    from pi05_ros.runtime.policy_loading import load_policy

    image = np.full((224, 224, 3), 128, np.uint8)
    images = dict.fromkeys(robot.camera_roles, image)
    observation = Observation(images, np.zeros(len(robot.state_names)), "measure")
    policy = load_policy(parameters)
    try:
        times_ms: list[float] = []
        until = time.monotonic() + PROBE_S
        while len(times_ms) < 2 or (len(times_ms) <= PROBE_RUNS and time.monotonic() < until):
            began = time.monotonic()
            policy.infer(observation, seed=0)
            times_ms.append(1e3 * (time.monotonic() - began))
    finally:
        policy.close()
    median_ms, slow_ms = np.percentile(times_ms[1:], [50, 90])  # the first one warms up
    rate_hz = max(SLOWEST_HZ, min(FASTEST_HZ, 1e3 / (LOAD * slow_ms)))
    rate_hz = float(int(rate_hz)) if rate_hz >= 1.0 else SLOWEST_HZ
    print(
        f"machine  one inference takes {median_ms:.0f} ms here (p90 {slow_ms:.0f} ms); the demo "
        f"asks for {rate_hz:g} Hz (at most {FASTEST_HZ:g}; --rate asks for another)"
    )
    return rate_hz


def _require_joints(robot: RobotProfile) -> None:
    from pi05_ros.bags.bag import BagError
    from pi05_ros.sim.arm.world import JOINT_NAMES

    lacking = [name for name in robot.state_names if name not in JOINT_NAMES]
    if lacking:
        raise BagError(
            f"robot {robot.name} has {', '.join(lacking)}; the scene has the joints "
            f"{', '.join(JOINT_NAMES)}"
        )


def _make_bag(args: argparse.Namespace, path: Path) -> None:
    """Render the scene, or keep the one that is there, and say so."""
    from pi05_ros.replay.demo_bag import SceneOptions, make_demo_bag

    started = time.monotonic()
    options = SceneOptions(seconds=args.seconds, renderer=args.renderer)
    bag = make_demo_bag(path, options, args.fresh)
    seconds = time.monotonic() - started
    how = "kept from the last run" if bag.cached else f"written in {seconds:.1f} s"
    print(
        f"bag      {bag.path}: {options.seconds:g} s, 2 cameras {options.width}x{options.height} "
        f"at {options.camera_hz:g} Hz, joint states at 100 Hz, /clock; rendered with "
        f"{bag.renderer}, {how}"
    )
    if bag.note:
        print(f"         {bag.note}")
