"""The resize: openpi's geometry, and torch level for level with Pillow."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pi05_ros.backends.resize import (
    fitted_size,
    resize_pillow,
    resize_with_pad,
    resize_with_pad_pillow,
    resize_with_pad_torch,
    to_model_range,
)

SIZES = [
    (480, 640), (720, 1280), (224, 224), (225, 223), (223, 225), (37, 1000), (1000, 37),
    (640, 480), (1280, 720), (222, 222), (226, 226), (222, 224), (226, 224), (100, 120),
    (1, 1), (1, 300), (300, 1), (17, 9), (1080, 1920),
]  # fmt: skip


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def level_difference(image, size):
    ours = resize_with_pad_torch(torch.from_numpy(image), size).numpy().astype(int)
    theirs = resize_with_pad_pillow(image, size).astype(int)
    assert ours.shape == theirs.shape == (size, size, 3)
    return np.abs(ours - theirs).max()


@pytest.mark.parametrize("shape", SIZES)
def test_torch_equals_pillow_within_one_level(shape):
    assert level_difference(noise(*shape), 224) <= 1


@pytest.mark.parametrize("shape", [(480, 640), (720, 1280), (225, 223), (37, 1000), (100, 120)])
def test_torch_equals_pillow_exactly_for_wide_and_usual_pictures(shape):
    assert level_difference(noise(*shape), 224) == 0


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 400), st.integers(1, 400), st.sampled_from([56, 224]), st.integers(0, 99))
def test_torch_equals_pillow_for_any_size(height, width, size, seed):
    assert level_difference(noise(height, width, seed), size) <= 1


@pytest.mark.parametrize("pattern", ["checker", "white", "black", "edge"])
def test_extreme_pictures(pattern):
    image = np.zeros((211, 317, 3), dtype=np.uint8)
    if pattern == "checker":
        image[::2, ::2] = 255
        image[1::2, 1::2] = 255
    elif pattern == "white":
        image[:] = 255
    elif pattern == "edge":
        image[:, 158:] = 255
    assert level_difference(image, 224) == 0


def test_batches_of_cameras():
    images = torch.from_numpy(np.stack([noise(48, 64, i) for i in range(3)]))
    together = resize_with_pad_torch(images, 56)
    for i in range(3):
        torch.testing.assert_close(together[i], resize_with_pad_torch(images[i], 56))


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((480, 640), (168, 224)), ((720, 1280), (126, 224)), ((640, 480), (224, 168)),
     ((225, 223), (223, 222)), ((1, 1000), (1, 224))],
)  # fmt: skip
def test_fitted_size_truncates(shape, expected):
    """225 / (225 / 224) is just below 224 in floating point, and openpi truncates it as well."""
    assert fitted_size(*shape, 224) == expected


def test_borders_are_black_and_centered():
    image = np.full((480, 640, 3), 200, dtype=np.uint8)
    out = resize_with_pad_pillow(image, 224)
    assert not out[:28].any()
    assert not out[196:].any()
    assert (out[28:196] == 200).all()


def test_right_size_is_left_alone():
    image = noise(224, 224)
    assert resize_with_pad_pillow(image, 224) is image
    tensor = torch.from_numpy(image)
    assert resize_with_pad_torch(tensor, 224) is tensor


def test_cpu_uses_pillow_and_equals_its_own_filter():
    image = noise(480, 640)
    out = resize_with_pad(torch.from_numpy(image), 224)
    resized = Image.fromarray(image).resize((224, 168), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(out[28:196].numpy(), np.asarray(resized))


def test_any_number_of_channels():
    gray = torch.from_numpy(noise(40, 50)[..., :1].copy())
    color = resize_pillow(gray.expand(-1, -1, 3), 20, 30)
    torch.testing.assert_close(resize_pillow(gray, 20, 30).expand(-1, -1, 3), color)


def test_model_range():
    out = to_model_range(torch.tensor([[[0, 255, 128]]], dtype=torch.uint8))
    assert out.shape == (3, 1, 1)
    assert out.flatten().tolist() == pytest.approx([-1.0, 1.0, 128 / 255 * 2 - 1], abs=1e-7)
