"""Keys that openpi's clients of known robots send their observations under."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class OpenpiKeys:
    """Where openpi's client of one robot puts things.

    Attributes:
        images: camera role -> key; ``images/x`` may also be key ``x`` of a map ``images``.
        state: keys whose values follow each other in the state.

    """

    images: Mapping[str, str]
    state: tuple[str, ...]


# Facts of openpi's examples (examples/droid/main.py, examples/libero/main.py,
# examples/aloha_real/env.py, examples/ur5/README.md).
_DROID = OpenpiKeys(
    {"base": "observation/exterior_image_1_left", "wrist": "observation/wrist_image_left"},
    ("observation/joint_position", "observation/gripper_position"),
)
OPENPI_KEYS: Mapping[str, OpenpiKeys] = {
    "droid": _DROID,
    "droid_jointpos": _DROID,
    "libero": OpenpiKeys(
        {"base": "observation/image", "wrist": "observation/wrist_image"}, ("observation/state",)
    ),
    "libero_poses": OpenpiKeys(
        {"base": "observation/image", "wrist": "observation/wrist_image"}, ("observation/state",)
    ),
    "aloha": OpenpiKeys(
        {
            "base": "images/cam_high",
            "wrist": "images/cam_left_wrist",
            "wrist_2": "images/cam_right_wrist",
        },
        ("state",),
    ),
    "ur5e": OpenpiKeys({"base": "base_rgb", "wrist": "wrist_rgb"}, ("joints", "gripper")),
}
