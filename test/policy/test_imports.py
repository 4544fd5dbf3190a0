"""What is imported when: profiles without torch, nothing of ROS at all."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("from pi05_ros.policy import Observation, load_profile; load_profile('droid')", "torch"),
        (
            "from pi05_ros.policy import Policy; Policy.load('random:tiny')",
            "rclpy sentencepiece torch._dynamo sympy",
        ),
    ],
)
def test_only_what_is_needed_is_imported(code, absent):
    code += f"\nimport sys; assert not {set(absent.split())!r} & set(sys.modules)"
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
