"""openpi's clients get openpi's numbers, whatever units the robot profile has."""

import numpy as np
import pytest
from serving_rig import droid_request, own_request

from pi05_ros.policy import Policy
from pi05_ros.serving.openpi_units import OpenpiUnits
from pi05_ros.serving.requests import parse_request
from pi05_ros.serving.session import Session


@pytest.fixture(scope="module")
def policy():
    loaded = Policy.load("random:tiny", robot="droid", tokenizer="bytes", device="cpu")
    yield loaded
    loaded.close()


def test_droid_velocities_are_fractions_for_openpi_and_rad_per_s_for_us(policy):
    session = Session(policy, openpi=OpenpiUnits(policy.recipe))
    state = np.linspace(-0.5, 0.5, 8)
    openpi = session.answer(
        parse_request(
            droid_request(
                **{"observation/joint_position": state[:7],
                   "observation/gripper_position": state[7:]},
                seed=3,
            ),
            policy.robot,
        )
    )["actions"]  # fmt: skip
    ours = session.answer(
        parse_request(own_request(state=state, seed=3, prompt="pick up the block"), policy.robot)
    )
    assert ours["units"][0] == "radian_per_second"
    np.testing.assert_allclose(
        ours["actions"][:, :7], 3.0 * np.clip(openpi[:, :7], -1, 1), atol=1e-6
    )
    np.testing.assert_array_equal(ours["actions"][:, 7], openpi[:, 7] > 0.5)
