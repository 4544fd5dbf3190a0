"""`pi05 calibrate-delay --joint NAME --enable`: delays of commands and cameras on a robot."""

from __future__ import annotations

import argparse
from pathlib import Path

from pi05_ros.request_options import filled


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--joint", required=True, help="joint that makes a small sine")
    parser.add_argument(
        "--enable", action="store_true", help="it may move; without this nothing is moved"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would be done, and move nothing"
    )
    parser.add_argument("--amplitude", type=float, default=0.05, help="rad or m")
    parser.add_argument("--frequency", type=float, default=0.5, help="Hz")
    parser.add_argument("--cycles", type=int, default=6, help="periods of the sine")
    parser.add_argument("--max-delay", type=float, default=0.6, help="longest delay, s")
    parser.add_argument(
        "--camera",
        action="append",
        default=[],
        metavar="TOPIC",
        help="topic of images that show the motion (.../compressed too); may be repeated",
    )
    parser.add_argument("--executor", default="pi05_executor", help="name of the executor node")
    parser.add_argument("--namespace", default="", help="of the robot's nodes")
    parser.add_argument("--use-sim-time", action="store_true", help="follow /clock")
    parser.add_argument("--out", type=Path, help="parameter file to write; default: print it")


def run(args: argparse.Namespace) -> int:
    """Measure and write."""
    from pi05_ros.ros.calibration.measure_delays import DelayRequest, calibrate

    request = filled(
        DelayRequest,
        args,
        frequency_hz=args.frequency,
        max_delay_s=args.max_delay,
        cameras=tuple(args.camera),
    )
    return calibrate(request, print)
