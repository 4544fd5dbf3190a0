"""Images as the model sees them: turned, fitted into its square, padded."""

from __future__ import annotations

import numpy as np

from pi05_ros.backends.resize import resize_with_pad_pillow
from pi05_ros.policy.robots.profile import RobotProfile
from pi05_ros.policy.transforms.images import lerobot_image, to_uint8_hwc

SIZE = 224
"""Side of pi0.5's images, pixels."""


class ModelImages:
    """Prepares images of one robot.

    Args:
        robot: whose cameras they are.
        size: side of the model's images, pixels.
        lerobot_pad: border value of LeRobot's resize; None is openpi's resize.

    """

    def __init__(
        self, robot: RobotProfile, size: int = SIZE, lerobot_pad: float | None = None
    ) -> None:
        self.size = size
        self.slots = {camera.role: camera.slot for camera in robot.cameras}
        self._turned = {camera.role for camera in robot.cameras if camera.rotate_180}
        self._pad = lerobot_pad

    def show(self, role: str, image: np.ndarray) -> np.ndarray:
        """Image ``[H, W, 3]`` of a camera as uint8 ``[S, S, 3]``.

        Raises:
            PolicyError: not an image.

        """
        pixels = to_uint8_hwc(image, role)
        if role in self._turned:
            pixels = np.ascontiguousarray(pixels[::-1, ::-1])
        if self._pad is None:
            return resize_with_pad_pillow(pixels, self.size)
        model = lerobot_image(pixels, self.size, self._pad).numpy()
        shown = np.clip((model + 1.0) * 127.5, 0, 255).round().astype(np.uint8)
        return np.ascontiguousarray(shown.transpose(1, 2, 0))
