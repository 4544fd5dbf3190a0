"""Options that every command has which loads a policy, and what the launch files import."""

from __future__ import annotations

import argparse
import subprocess
import sys

import pytest

from pi05_ros.cli.checkpoint_options import (
    add_checkpoint_options,
    checkpoint_parameters,
    load_keywords,
)
from pi05_ros.runtime.parameters import ParameterError


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_checkpoint_options(parser)
    return parser.parse_args(words)


def test_options_become_parameters_and_keywords() -> None:
    args = parse("--control-hz", "20", "--lerobot-era", "0.5", "--camera-map", "base=top, wrist=w")
    assert checkpoint_parameters(args) == {
        "control_hz": 20.0,
        "lerobot_era": "0.5",
        "camera_map": ("base=top", "wrist=w"),
    }
    assert load_keywords(args) == {
        "control_hz": 20.0,
        "lerobot_era": "0.5",
        "camera_roles": {"base": "top", "wrist": "w"},
    }


def test_nothing_given_changes_nothing() -> None:
    assert checkpoint_parameters(parse()) == {}
    assert load_keywords(parse()) == {
        "control_hz": None,
        "lerobot_era": "auto",
        "camera_roles": None,
    }


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--control-hz", "fast"), "control_hz:=fast is not a number"),
        (("--control-hz", "1e-10"), "0.1 to 1000"),
        (("--lerobot-era", "0.6"), "auto, 0.4, 0.5"),
        (("--camera-map", "base"), "role=feature"),
        (("--camera-map", "base=a,base=b"), "once"),
    ],
)
def test_wrong_values_name_what_is_accepted(words: tuple[str, ...], said: str) -> None:
    with pytest.raises(ParameterError, match=said):
        checkpoint_parameters(parse(*words))


def test_launch_arguments_are_there_without_torch() -> None:
    code = (
        "import sys; from pi05_ros.runtime.launch_arguments import parameter_arguments; "
        "assert 'lerobot_era' in parameter_arguments(); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
