"""Frames as observations: openpi's keys of each robot, our own form, and what is refused."""

import io

import numpy as np
import pytest
from PIL import Image
from serving_rig import DROID, droid_request, own_request

from pi05_ros.policy import load_profile
from pi05_ros.policy.remote.errors import WireError
from pi05_ros.policy.robots.openpi_keys import OPENPI_KEYS
from pi05_ros.serving.requests import parse_request

PIXELS = np.arange(2 * 4 * 3, dtype=np.uint8).reshape(2, 4, 3)


def test_droid_as_openpi_sends_it():
    request = parse_request(
        droid_request(
            **{"observation/joint_position": np.arange(7.0), "observation/gripper_position": [0.5]}
        ),
        DROID,
    )
    assert request.openpi
    np.testing.assert_array_equal(request.observation.state, [0, 1, 2, 3, 4, 5, 6, 0.5])
    assert set(request.observation.images) == {"base", "wrist"}
    assert request.observation.prompt == "pick up the block"


def test_libero_and_aloha_as_openpi_sends_them():
    libero = parse_request(
        {"observation/image": PIXELS, "observation/wrist_image": PIXELS,
         "observation/state": np.zeros(8, np.float32), "prompt": "x"},
        load_profile("libero"),
    )  # fmt: skip
    assert set(libero.observation.images) == {"base", "wrist"}
    cameras = {"cam_high": PIXELS, "cam_left_wrist": PIXELS, "cam_right_wrist": PIXELS}
    aloha = parse_request({"state": np.zeros(14), "images": cameras}, load_profile("aloha"))
    assert aloha.openpi
    assert set(aloha.observation.images) == {"base", "wrist", "wrist_2"}


def test_every_shipped_key_fits_its_profile():
    for robot, keys in OPENPI_KEYS.items():
        profile = load_profile(robot)
        assert set(profile.required_roles) <= set(keys.images), robot


def test_our_own_form_with_jpeg_and_control_keys():
    data = io.BytesIO()
    Image.fromarray(np.full((16, 16, 3), 99, np.uint8)).save(data, "JPEG")
    request = parse_request(
        own_request(
            images={"base": {"jpeg": data.getvalue()}}, seed=5, denoise_steps=3, deadline_ms=40,
            request_id="r1", stamp_ns=7, age_s=0.1,
        ),
        DROID,
    )  # fmt: skip
    assert not request.openpi
    assert request.observation.images["base"].shape == (16, 16, 3)
    assert (request.seed, request.denoise_steps, request.request_id) == (5, 3, "r1")
    assert request.deadline_ms == 40.0
    assert (request.observation.stamp_ns, request.observation.age_s) == (7, 0.1)


def test_reset_alone_needs_no_observation():
    request = parse_request({"reset": True}, DROID)
    assert request.reset
    assert request.observation is None


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([1], "a request is a map"),
        (droid_request(promt="x"), "did you mean 'prompt'"),
        (droid_request(**{"observation/joint_position": np.zeros(6)}), "have 7 values"),
        (droid_request(**{"observation/joint_position": None}), "is missing"),
        (droid_request(**{"observation/joint_position": "x"}), "accepted: a list of numbers"),
        (droid_request(**{"observation/joint_position": np.full(7, np.nan)}), "not finite"),
        (droid_request(**{"observation/wrist_image_left": PIXELS[..., :2]}), "has shape"),
        (droid_request(**{"observation/wrist_image_left": PIXELS.astype(np.int32)}), "is int32"),
        (droid_request(**{"observation/wrist_image_left": "x"}), "accepted: an array"),
        (droid_request(prompt=5), "prompt is int"),
        (droid_request(prompt="x" * 5000), "prompt is str"),
        (own_request(images={"left": PIXELS}), "not known"),
        (own_request(images={"base": {"jpeg": b"no"}}), "no JPEG"),
        (own_request(state=[[1, 2], [3]]), "accepted: 8 numbers"),
        (own_request(state=np.zeros(9)), "has 9 values; accepted: 8"),
        (own_request(seed=-1), "seed is -1"),
        (own_request(seed=True), "seed is True"),
        (own_request(denoise_steps=0), "denoise_steps is 0"),
        (own_request(deadline_ms=float("nan")), "deadline_ms"),
        (own_request(request_id=1.5), "request_id"),
        (own_request(reset="yes"), "reset is 'yes'"),
        (own_request(age_s=-1), "age_s is -1"),
        ({b"\xff": 1}, "a key is no text"),
    ],
)
def test_what_is_refused_is_named(value, words):
    with pytest.raises(WireError) as refused:
        parse_request(value, DROID)
    assert words in str(refused.value), str(refused.value)
