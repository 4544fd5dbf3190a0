"""`pi05 dataset BAG... --out DIR`: recorded demonstrations as a LeRobot dataset."""

from __future__ import annotations

import argparse
from pathlib import Path

ASSUMED_ROBOT = "sim_arm"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument(
        "bags", type=Path, nargs="+", metavar="BAG", help="rosbag2 recordings, or folders of them"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the dataset")
    parser.add_argument(
        "--robot", help=f"robot profile: name or YAML file (default {ASSUMED_ROBOT})"
    )
    parser.add_argument(
        "--version", default="3.0", choices=("3.0", "2.1"), help="of LeRobot's format"
    )
    parser.add_argument("--task", default="", help="task of all episodes, instead of the prompts")
    parser.add_argument(
        "--intervention-actions",
        default="targets",
        choices=("targets", "commands"),
        help="actions where a person had the arm: their targets, or the commands made of them",
    )
    parser.add_argument(
        "--map",
        action="append",
        default=[],
        metavar="INPUT=TOPIC",
        help="topic of an input, e.g. base_camera=/cam/image_raw",
    )
    parser.add_argument("--namespace", default="", help="look for topics below this namespace")


def run(args: argparse.Namespace) -> int:
    """Export; an interrupted export goes on where it was."""
    from rich.progress import Progress

    from pi05_ros.bags.bag_files import bags_in
    from pi05_ros.bags.topics import parse_map
    from pi05_ros.policy.robots.profile_yaml import load_profile
    from pi05_ros.workflows.export_dataset import DatasetRequest, export_dataset

    if args.robot is None:
        print(f"assumed         robot {ASSUMED_ROBOT}; --robot names another")
    bags = [bag for path in args.bags for bag in bags_in(path)]
    with Progress(transient=True) as progress:
        job = progress.add_task("recordings", total=len(bags))

        def say(text: str) -> None:
            progress.console.print(text, markup=False, highlight=False, soft_wrap=True)
            progress.advance(job)

        request = DatasetRequest(
            bags,
            args.out,
            load_profile(args.robot or ASSUMED_ROBOT),
            args.version,
            parse_map(args.map),
            args.namespace,
            args.task,
            args.intervention_actions == "targets",
        )
        writer = export_dataset(request, say)
    frames = sum(episode.length for episode in writer.episodes)
    print(f"wrote           {args.out}: {len(writer.episodes)} episodes, {frames} frames")
    return 0
