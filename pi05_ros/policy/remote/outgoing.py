"""An observation as a request: in our own form for `pi05 serve`, in openpi's keys for others."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

from pi05_ros.backends.resize import resize_with_pad_pillow
from pi05_ros.policy.interface import Observation
from pi05_ros.policy.remote.remote_options import RemoteOptions
from pi05_ros.policy.remote.server_facts import ServerFacts
from pi05_ros.policy.robots.openpi_keys import OPENPI_KEYS
from pi05_ros.policy.transforms.images import to_uint8_hwc

MODEL_SIZE = 224
"""Side of the model's images, pixels, to which `RemoteOptions.resize` shrinks."""


def own_request(
    options: RemoteOptions, obs: Observation, prompt: str, seed: int, steps: int | None
) -> dict[str, Any]:
    """Request in our own form: SI units, a seed, a deadline."""
    request: dict[str, Any] = {
        "images": {role: _image(options, image, role) for role, image in obs.images.items()},
        "state": np.asarray(obs.state),
        "prompt": prompt,
        "seed": seed,
        "age_s": min(3600.0, max(0.0, obs.age_s)),
        "deadline_ms": 1e3 * options.deadline_s,
    }
    if obs.stamp_ns > 0:
        request["stamp_ns"] = obs.stamp_ns
    if steps:
        request["denoise_steps"] = steps
    return request


def openpi_request(
    options: RemoteOptions, obs: Observation, prompt: str, facts: ServerFacts
) -> dict[str, Any]:
    """Request in openpi's keys and units of a robot."""
    keys = OPENPI_KEYS[facts.robot.name]
    request: dict[str, Any] = {"prompt": prompt}
    for role, image in obs.images.items():
        folder, _, name = keys.images[role].rpartition("/")
        if folder == "images":  # ALOHA: a map of channel-first images
            pixels = np.ascontiguousarray(_pixels(options, image, role).transpose(2, 0, 1))
            request.setdefault("images", {})[name] = pixels
        else:
            request[keys.images[role]] = _pixels(options, image, role)
    state = facts.state_as_trained(np.asarray(obs.state, np.float64))
    sizes = {"observation/joint_position": 7, "joints": 6}
    at = 0
    for key in keys.state:
        size = sizes.get(key, len(state) - at)
        request[key] = state[at : at + size]
        at += size
    return request


def _pixels(options: RemoteOptions, image: np.ndarray, role: str) -> np.ndarray:
    pixels = to_uint8_hwc(np.asarray(image), role)
    if options.resize:
        pixels = resize_with_pad_pillow(pixels, MODEL_SIZE)
    return np.ascontiguousarray(pixels)


def _image(options: RemoteOptions, image: np.ndarray, role: str) -> np.ndarray | dict[str, bytes]:
    pixels = _pixels(options, image, role)
    if not options.jpeg_quality:
        return pixels
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=options.jpeg_quality)
    return {"jpeg": out.getvalue()}
