"""Parameters of the simulated arm's driver node.

python -m pi05_ros.sim.arm.driver_parameters --markdown     # the table of docs/closed_loop.md
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from pi05_ros.runtime.parameter_specs import main, param, specs_of
from pi05_ros.sim.arm.render import BACKENDS
from pi05_ros.sim.arm.tasks import TASKS, task_by_name

MOST_PIXELS = (1280, 960)
"""Width and height of the offscreen buffer in arm.xml."""


def _check_task(word: str) -> str | None:
    try:
        task_by_name(word)
    except ValueError:
        return f"accepted: {', '.join(TASKS)}, or one of their prompts"
    return None


def _check_renderer(word: str) -> str | None:
    return f"accepted: {', '.join(BACKENDS)}, or empty" if word not in ("", *BACKENDS) else None


@dataclass(frozen=True)
class DriverParameters:
    """Every parameter of the driver node, all read-only."""

    task: str = param(
        "pick_red", f"What counts as done: {', '.join(TASKS)}, or its prompt.", check=_check_task
    )
    seed: int = param(
        0, "Scene of the first episode; each reset takes the next.", within=(0, 2**31 - 1)
    )
    width: int = param(224, "Width of the images.", within=(1, MOST_PIXELS[0]))
    height: int = param(224, "Height of the images.", within=(1, MOST_PIXELS[1]))
    image_rate_hz: float = param(
        20.0, "Images per second and camera, no more than `joint_rate_hz`.", within=(0.1, 1000.0)
    )
    joint_rate_hz: float = param(
        100.0, "Joint states per second; the arm moves in steps of 5 ms.", within=(1.0, 1000.0)
    )
    compressed: bool = param(False, "Publish JPEG on `.../compressed` instead of raw images.")
    publish_clock: bool = param(False, "Publish `/clock` and stamp with simulated time.")
    lock_step: bool = param(
        False,
        "Like `publish_clock`, and simulated time waits for chunks and commands, so that the arm "
        "does the same on a slow machine. The other nodes need `use_sim_time`.",
    )
    chunk_rate_hz: float = param(
        0.0,
        "Inferences per second that `lock_step` waits for, the policy's `rate_hz`; 0: it waits "
        "for commands only.",
        within=(0.0, 200.0),
    )
    lock_step_wait_s: float = param(
        5.0,
        "Longest real time that `lock_step` waits for a message; then it goes on without.",
        within=(0.1, 600.0),
    )
    simulated_command_delay_s: float = param(
        0.0, "Commands take effect so much later.", within=(0.0, 1.0)
    )
    simulated_camera_delay_s: float = param(
        0.0, "Images come so much later, with the stamp of that time.", within=(0.0, 1.0)
    )
    publish_prompt: bool = param(True, "Publish the task's words on `prompt`.")
    renderer: str = param(
        "",
        f"What draws the images: {', '.join(BACKENDS)}; empty: the first of them that works.",
        check=_check_renderer,
    )


SPECS = specs_of(DriverParameters)

if __name__ == "__main__":
    sys.exit(main(SPECS, "simulated arm's driver"))
