"""Options for what a checkpoint's files leave open; parameters of the node of the same names."""

from __future__ import annotations

import argparse
from typing import Any

NAMES = ("control_hz", "lerobot_era", "camera_map")


def add_checkpoint_options(parser: argparse._ActionsContainer) -> None:
    """Options of a command that loads a policy."""
    parser.add_argument("--control-hz", help="steps per second, instead of the profile's")
    parser.add_argument("--lerobot-era", help="conventions of a LeRobot file: auto, 0.4, 0.5")
    parser.add_argument(
        "--camera-map",
        metavar="ROLE=FEATURE,...",
        help="LeRobot: image feature of a camera role, e.g. base=observation.images.top",
    )


def checkpoint_parameters(args: argparse.Namespace) -> dict[str, Any]:
    """Values of the options that were given, by parameter name.

    Raises:
        ParameterError: a value that the node's parameter does not accept.

    """
    from pi05_ros.runtime.parameters import SPECS

    given = {name: getattr(args, name) for name in NAMES}
    return {name: SPECS[name].read(text) for name, text in given.items() if text is not None}


def load_keywords(args: argparse.Namespace) -> dict[str, Any]:
    """The same as keywords of `Policy.load`."""
    from pi05_ros.runtime.parameters import PolicyParameters

    parameters = PolicyParameters.from_values(checkpoint_parameters(args))
    return {
        "control_hz": parameters.control_hz or None,
        "lerobot_era": parameters.lerobot_era,
        "camera_roles": parameters.camera_features or None,
    }
