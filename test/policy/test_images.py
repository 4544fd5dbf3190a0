"""Images as they come in: layouts and types that are accepted, and LeRobot's own resize."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from pi05_ros.policy import PolicyError
from pi05_ros.policy.transforms.images import lerobot_image, to_hwc, to_uint8_hwc

PICTURE = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def test_layouts_and_types_give_the_same_picture():
    np.testing.assert_array_equal(to_uint8_hwc(PICTURE), PICTURE)
    np.testing.assert_array_equal(to_uint8_hwc(PICTURE.transpose(2, 0, 1)), PICTURE)
    for dtype in (np.float16, np.float32, np.float64):
        floats = (PICTURE.astype(np.float64) / 255).astype(dtype)
        expected = (255 * floats).astype(np.uint8)  # truncated, as openpi does
        np.testing.assert_array_equal(to_uint8_hwc(floats), expected)
    assert to_uint8_hwc(PICTURE[::-1, ::2]).flags.c_contiguous


def test_floats_are_truncated_not_rounded():
    image = np.full((2, 2, 3), 0.999, dtype=np.float64)
    assert (to_uint8_hwc(image) == 254).all()


@pytest.mark.parametrize(
    ("image", "word"),
    [
        (PICTURE[..., :2], r"\[5, 7, 2\]"),
        (PICTURE[..., 0], r"\[5, 7\]"),
        (PICTURE[None], r"\[1, 5, 7, 3\]"),
        (np.zeros((5, 7, 4), np.uint8), r"\[5, 7, 4\]"),
        (np.zeros((0, 7, 3), np.uint8), r"\[0, 7, 3\]"),
        (PICTURE.astype(np.int32), "int32"),
        (PICTURE.astype(np.float32), "values from 0"),
        (np.full((2, 2, 3), np.nan), "nan"),
        (np.full((2, 2, 3), -0.1), "-0.1"),
        ([[1]], "list"),
    ],
)
def test_what_is_not_accepted_is_named(image, word):
    with pytest.raises(PolicyError, match=rf"camera 'wrist'.*{word}.*accepted: uint8") as error:
        to_uint8_hwc(image, "wrist")
    assert "\n" not in str(error.value)


def lerobot_reference(image, size, old):
    """LeRobot's steps one by one: interpolate, clamp, pad (-1 before 0.5.0, else 0), scale."""
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    height, width = image.shape[:2]
    ratio = max(width / size, height / size)
    new = (int(height / ratio), int(width / ratio))
    pixels = F.interpolate(pixels, size=new, mode="bilinear", align_corners=False)
    pixels = pixels.clamp(-1.0, 1.0)
    top, rest_v = divmod(size - new[0], 2)
    left, rest_h = divmod(size - new[1], 2)
    padding = (left, left + rest_h, top, top + rest_v)
    pixels = F.pad(pixels, padding, value=-1.0 if old else 0.0)
    return (pixels * 2 - 1)[0]


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 90), st.integers(2, 90), st.booleans())
def test_lerobot_resize(height, width, old):
    image = np.random.default_rng(height * 100 + width).integers(
        0, 256, (height, width, 3), dtype=np.uint8
    )
    ours = lerobot_image(image, 56, -3.0 if old else -1.0)
    torch.testing.assert_close(ours, lerobot_reference(image, 56, old), rtol=0, atol=1e-6)


def test_lerobot_borders():
    image = np.full((28, 56, 3), 255, dtype=np.uint8)
    assert lerobot_image(image, 56, -3.0).unique().tolist() == [-3.0, 1.0]
    assert lerobot_image(image, 56, -1.0).unique().tolist() == [-1.0, 1.0]


def test_lerobot_keeps_floats_as_they_are():
    image = np.random.default_rng(3).random((40, 56, 3), dtype=np.float32)
    ours = lerobot_image(to_hwc(image.transpose(2, 0, 1)), 56, -1.0)
    inside = torch.from_numpy(image).permute(2, 0, 1) * 2 - 1  # 40 x 56 fits without scaling
    torch.testing.assert_close(ours[:, 8:48], inside, rtol=0, atol=1e-6)
    assert (to_hwc(image) == image).all()
