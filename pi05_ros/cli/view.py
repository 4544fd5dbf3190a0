"""`pi05 view [BAG]`: images, chunks and states for Foxglove, of a recording or of live nodes."""

from __future__ import annotations

import argparse
import contextlib
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pi05_ros.errors import InvalidValueError

if TYPE_CHECKING:
    from pi05_ros.policy.robots.profile import RobotProfile
    from pi05_ros.view.foxglove_sink import FoxgloveSink
    from pi05_ros.view.model_images import ModelImages
    from pi05_ros.view.presenter import MakePresenter
    from pi05_ros.view.tool_path import Tool

LAYOUT = "foxglove/pi05.json"
HOST, PORT = "127.0.0.1", 8765
"""Those of `view.foxglove_sink`, which --help does not import."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument(
        "bag",
        type=Path,
        nargs="?",
        help="recording or LeRobot dataset; without it, the nodes that run are shown (ROS 2)",
    )
    parser.add_argument("--robot", default="", help="robot profile: name or YAML file")
    parser.add_argument(
        "--checkpoint", default="", help="takes robot and image conventions from a checkpoint"
    )
    parser.add_argument("--image-size", type=int, default=224, help="side of the model's images")
    tool = parser.add_argument_group("path of the tool")
    tool.add_argument("--urdf", type=Path, help="URDF of the arm")
    tool.add_argument("--tool", default="", help="link of the tool (default: the last one)")
    tool.add_argument("--base", default="", help="link in which it is shown (default: the root)")
    recording = parser.add_argument_group("recordings")
    recording.add_argument(
        "--chunks", type=Path, help="recording of the chunks, or the folder of a replay"
    )
    recording.add_argument(
        "--map", action="append", default=[], metavar="INPUT=TOPIC", help="topic of an input"
    )
    recording.add_argument("--namespace", default="", help="of topics, also of live ones")
    recording.add_argument("--speed", type=float, default=1.0, help="seconds per second")
    recording.add_argument("--once", action="store_true", help="play once, then end")
    live = parser.add_argument_group("live")
    live.add_argument("--policy-node", default="pi05_policy", help="name of the policy node")
    live.add_argument("--executor-node", default="pi05_executor", help="name of the executor")
    server = parser.add_argument_group("server")
    server.add_argument("--host", default=HOST, help="where it listens; there is no password")
    server.add_argument("--port", type=int, default=PORT, help="0: any free one")


def run(args: argparse.Namespace) -> int:
    """Serve until Ctrl-C, or once."""
    from pi05_ros import resources
    from pi05_ros.bags.lerobot_files import split_episode
    from pi05_ros.view.foxglove_sink import FoxgloveSink
    from pi05_ros.view.presenter import Presenter

    for option, value, low, high in (
        ("--image-size", args.image_size, 1, 1024),
        ("--port", args.port, 0, 65535),
        ("--speed", args.speed, 0.01, 100),
    ):
        if not low <= value <= high:
            raise InvalidValueError(f"{option} is {value:g}; accepted: {low:g} to {high:g}")
    for path in (args.bag and split_episode(args.bag)[0], args.chunks):
        if path is not None and not path.exists():
            raise InvalidValueError(f"{path} does not exist")
    robot, images = _robot(args)
    tool, why = _tool(args, robot)
    with FoxgloveSink(robot.camera_roles, args.host, args.port) as sink:
        print(f"serving         {sink.url}")
        layout = resources.config_dir() / LAYOUT
        print(f"Foxglove        Open connection > Foxglove WebSocket; layout {layout}")
        print(f"path of tool    {tool.source if tool else why}", flush=True)
        if args.host not in ("127.0.0.1", "localhost", "::1"):
            print(f"note            anybody who reaches {args.host} sees this")
        make = partial(Presenter, images=images, tool=tool, why_no_tool=why)
        if args.bag is None:
            return _live(args, robot, make, sink)
        return _recording(args, robot, make, sink)


def _robot(args: argparse.Namespace) -> tuple[RobotProfile, ModelImages]:
    from pi05_ros.policy.checkpoints.loading import read_recipe
    from pi05_ros.policy.robots.profile_yaml import load_profile
    from pi05_ros.view.model_images import ModelImages

    if args.checkpoint:
        recipe = read_recipe(args.checkpoint, robot=args.robot or None)
        return recipe.profile, ModelImages(recipe.profile, args.image_size, recipe.lerobot_pad)
    robot = load_profile(args.robot or "sim_arm")
    return robot, ModelImages(robot, args.image_size)


def _tool(args: argparse.Namespace, robot: RobotProfile) -> tuple[Tool | None, str]:
    """The tool's kinematics, or why there are none."""
    from pi05_ros.small_files import read_text
    from pi05_ros.view.tool_path import Tool, ToolPose, urdf_tool

    if args.urdf is not None:
        return urdf_tool(read_text(args.urdf), args.tool, args.base), ""
    if args.tool or args.base:
        raise InvalidValueError("--tool and --base name links of a URDF: give --urdf as well")
    if robot.name != "sim_arm":
        return None, "not shown: no URDF was given (--urdf)"
    from pi05_ros.sim.arm.kinematics import forward

    return (
        Tool(
            robot.state_names[:6],
            "base",
            "no URDF was given; the simulated arm's own kinematics",
            lambda joints: ToolPose(*forward(joints)),
        ),
        "",
    )


def _recording(
    args: argparse.Namespace, robot: RobotProfile, make: MakePresenter, sink: FoxgloveSink
) -> int:
    from pi05_ros.bags.bag import Bag
    from pi05_ros.bags.lerobot_recording import open_recording
    from pi05_ros.bags.topics import PROMPT, parse_map
    from pi05_ros.replay.run import choose
    from pi05_ros.view.bag_view import chunk_bag, chunk_topic, play, read

    with contextlib.ExitStack() as stack:
        bag = stack.enter_context(open_recording(args.bag, robot))
        chosen = choose(bag, robot, parse_map(args.map), args.namespace, with_prompt=False)
        recording = read(bag, {k: v for k, v in chosen.sources.items() if k != PROMPT})
        chunks = None
        if args.chunks is not None:
            chunks = stack.enter_context(Bag(chunk_bag(args.chunks)))
            chunk_topic(chunks, needed=True)
        for note in bag.notes:
            print(f"note            {note}")
        if chunks is None and recording.chunk_topic is None:
            print("chunks          none recorded; --chunks shows those of `pi05 replay --out`")
        while True:
            presenter = make(sink)
            count = play(recording, chunks, presenter, sink, args.speed)
            if args.once:
                print(f"shown           {count} chunks")
                return 0
            sink.restart()


def _live(
    args: argparse.Namespace, robot: RobotProfile, make: MakePresenter, sink: FoxgloveSink
) -> int:
    from pi05_ros.ros.observers.view_node import LiveNames, run_live_view

    names = LiveNames(args.namespace, args.policy_node, args.executor_node)
    return run_live_view(names, robot, make, sink)
