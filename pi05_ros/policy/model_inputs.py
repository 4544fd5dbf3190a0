"""An observation checked and in the form that engines take."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from pi05_ros.policy.argument_checks import check_text
from pi05_ros.policy.checkpoints.recipe import Recipe
from pi05_ros.policy.errors import PolicyError
from pi05_ros.policy.interface import Observation
from pi05_ros.policy.prompt.prompt import PromptEncoder
from pi05_ros.policy.robots.profile import RobotProfile
from pi05_ros.policy.transforms.images import lerobot_image, to_hwc, to_uint8_hwc
from pi05_ros.policy.transforms.transforms import pad_to, state_to_model

_WARM_UP_SIZE = (480, 640)


@dataclass(frozen=True)
class ModelInputs:
    """What the model gets of one observation.

    Attributes:
        images: of the cameras that are there, in the model's order: uint8 ``[H, W, 3]``, or
            float32 ``[3, S, S]`` in [-1, 1] for LeRobot checkpoints.
        tokens: int64 ``[n]``, prompt and state.
        state: ``[n]`` in the model's conventions, not normalized; deltas refer to it.

    """

    images: list[torch.Tensor]
    tokens: torch.Tensor
    state: np.ndarray


def black_observation(robot: RobotProfile, prompt: str | None) -> Observation:
    """Observation to warm up with: all cameras black, joints at 0."""
    black = np.zeros((*_WARM_UP_SIZE, 3), dtype=np.uint8)
    return Observation(
        images=dict.fromkeys(robot.camera_roles, black),
        state=np.zeros(len(robot.state_names)),
        prompt=prompt or robot.default_prompt or "warm up",
    )


def choose_prompt(prompt: str | None, robot: RobotProfile) -> str:
    """Return a prompt, or the robot's default where there is none.

    Raises:
        PolicyError: neither is there, or it is not a text.

    """
    prompt = prompt or robot.default_prompt
    if prompt is None:
        raise PolicyError(
            f"no prompt: the observation has none and robot {robot.name!r} has no default; set "
            "`prompt` (of the node: parameter or topic)"
        )
    return check_text(prompt)


class ObservationReader:
    """Checks observations of one robot and prepares them for the model.

    Args:
        recipe: robot, normalization and image conventions.
        encoder: of prompts.
        image_size: side S of the model's images, pixels.

    """

    def __init__(self, recipe: Recipe, encoder: PromptEncoder, image_size: int) -> None:
        self.encoder = encoder
        self._recipe = recipe
        self._robot = recipe.profile
        self._image_size = image_size

    def read(self, obs: Observation, prompt: str) -> ModelInputs:
        """Inputs of the model.

        Raises:
            PolicyError: a required camera is missing, an image, the state or the prompt is not
                as accepted.

        """
        state = state_to_model(self._robot, self._check_state(obs.state))
        tokens = torch.from_numpy(self.encoder.encode(prompt, self._prompt_state(state)))
        return ModelInputs(self._images(obs.images), tokens, state)

    def _prompt_state(self, model_state: np.ndarray) -> np.ndarray:
        normalized = self._recipe.normalization.state.normalize(model_state)
        size = self._recipe.prompt_state_size
        return normalized if size is None else pad_to(normalized, size)

    def _check_state(self, state: np.ndarray) -> np.ndarray:
        names = self._robot.state_names
        try:
            values = np.asarray(state)
        except ValueError:  # lists of different lengths
            values = np.asarray(state, dtype=object)
        if values.shape != (len(names),) or values.dtype.kind not in "fiu":
            raise PolicyError(
                f"state is {values.dtype} {list(values.shape)}; accepted: {len(names)} numbers "
                f"({', '.join(names)})"
            )
        bad = [names[i] for i in np.flatnonzero(~np.isfinite(values))]
        if bad:
            raise PolicyError(f"state has NaN or infinite values: {', '.join(bad)}")
        return values if values.dtype.kind == "f" else values.astype(np.float64)

    def _images(self, images: Mapping[str, np.ndarray]) -> list[torch.Tensor]:
        """Images of the cameras that are there, in the model's order; the rest is masked."""
        roles = self._robot.camera_roles
        for role in images:
            if role not in roles:
                close = difflib.get_close_matches(str(role), roles, n=1)
                hint = f" (did you mean {close[0]!r}?)" if close else ""
                raise PolicyError(
                    f"camera {role!r} is not of robot {self._robot.name!r}{hint}; "
                    f"accepted: {', '.join(roles)}"
                )
        converted = []
        for camera in self._robot.cameras:
            image = images.get(camera.role)
            if image is None:
                if camera.required:
                    raise PolicyError(
                        f"camera {camera.role!r} is missing; robot {self._robot.name!r} needs "
                        f"{', '.join(self._robot.required_roles)}"
                    )
                continue
            pad = self._recipe.lerobot_pad
            pixels = (to_uint8_hwc if pad is None else to_hwc)(image, camera.role)
            if camera.rotate_180:
                pixels = np.ascontiguousarray(pixels[::-1, ::-1])
            if not pixels.flags.writeable:
                pixels = pixels.copy()
            if pad is None:
                converted.append(torch.from_numpy(pixels))
            else:
                converted.append(lerobot_image(pixels, self._image_size, pad))
        return converted
