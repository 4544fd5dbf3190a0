"""`pi05 calibrate-delay --joint NAME --enable`: delays of commands and cameras on a robot."""

from __future__ import annotations

import argparse

from pi05_ros.cli.common_options import add_options
from pi05_ros.execution.calibration.delay_request import DelayRequest
from pi05_ros.request_options import filled


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add_options(parser, DelayRequest)


def run(args: argparse.Namespace) -> int:
    """Measure and write."""
    from pi05_ros.ros.calibration.measure_delays import calibrate

    return calibrate(filled(DelayRequest, args), print)
