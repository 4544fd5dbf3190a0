"""Rotation conventions against scipy, and numbers that are no rotation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from pi05_ros.execution.kinematics.rotations import RotationError, from_matrices, to_matrices
from pi05_ros.policy.pose_groups import EULER, ROTATION_COLUMNS

KINDS = [kind for kind in ROTATION_COLUMNS if kind != "none"]
SPECIAL = Rotation.from_euler(
    "xyz",
    [[a, b, c] for a in (0, np.pi, -np.pi / 2) for b in (0, np.pi / 2, np.pi) for c in (0, 1.0)],
)


def scipy_values(rotation: Rotation, kind: str) -> np.ndarray:
    """The numbers of a kind, by another library."""
    matrix = rotation.as_matrix()
    if kind == "rotation_vector":
        return rotation.as_rotvec()
    if kind.startswith("quaternion"):
        return rotation.as_quat(scalar_first=kind.endswith("wxyz"))
    if kind == "rot6d_columns":
        return np.concatenate([matrix[:, :, 0], matrix[:, :, 1]], axis=1)
    if kind == "rot6d_rows":
        return np.concatenate([matrix[:, 0], matrix[:, 1]], axis=1)
    _, axes, which = kind.split("_")
    return rotation.as_euler(axes.upper() if which == "intrinsic" else axes)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:Gimbal lock")
def test_numbers_mean_what_scipy_says(kind):
    for rotation in (Rotation.random(200, random_state=1), SPECIAL):
        matrices = rotation.as_matrix()
        np.testing.assert_allclose(
            to_matrices(scipy_values(rotation, kind), kind), matrices, atol=1e-7
        )
        back = from_matrices(matrices, kind)
        assert back.shape == (len(matrices), ROTATION_COLUMNS[kind])
        np.testing.assert_allclose(to_matrices(back, kind), matrices, atol=1e-7)


@settings(max_examples=60, deadline=None)
@given(
    vector=st.lists(st.floats(-3.6, 3.6), min_size=3, max_size=3),
    tiny=st.sampled_from([1.0, 1e-3, 1e-9, 1e-200]),
    kind=st.sampled_from(KINDS),
)
def test_round_trips(vector, tiny, kind):
    matrix = Rotation.from_rotvec(np.array(vector) * tiny).as_matrix()[None]
    back = to_matrices(from_matrices(matrix, kind), kind)
    np.testing.assert_allclose(back, matrix, atol=2e-7)
    np.testing.assert_allclose(back[0].T @ back[0], np.eye(3), atol=1e-9)


def test_lengths_within_tolerance_are_normalized():
    unit = np.array([[0.5, 0.5, -0.5, 0.5]])
    for kind in ("quaternion_xyzw", "quaternion_wxyz"):
        for scale in (0.91, 1.09, -1.0):
            np.testing.assert_allclose(
                to_matrices(scale * unit, kind), to_matrices(unit, kind), atol=1e-12
            )
    six = np.array([[1.0, 0, 0, 0, 1, 0]])
    np.testing.assert_allclose(to_matrices(2 * six, "rot6d_rows")[0], np.eye(3))


@pytest.mark.parametrize(
    ("kind", "row", "words"),
    [
        ("quaternion_xyzw", [0, 0, 0, 0], "step 1: a quaternion has length 0; accepted: 0.9"),
        ("quaternion_wxyz", [1, 1, 0, 0], "length 1.414"),
        ("rot6d_columns", [0, 0, 0, 0, 1, 0], "first vector"),
        ("rot6d_rows", [1, 0, 0, 3, 0, 0], "across the first"),
        ("rotation_vector", [90, 0, 0], "in rad"),
        ("euler_xyz_extrinsic", [0, 45, 0], "in rad"),
        ("rotation_vector", [np.nan, 0, 0], "NaN"),
        ("quaternion_xyzw", [np.inf, 0, 0, 0], "NaN or infinite"),
    ],
)
def test_what_is_no_rotation_is_refused(kind, row, words):
    good = from_matrices(np.eye(3)[None], kind)[0]
    with pytest.raises(RotationError, match=words):
        to_matrices(np.array([good, row]), kind)


def test_no_rotation_is_the_identity():
    np.testing.assert_array_equal(to_matrices(np.zeros((2, 0)), "none"), [np.eye(3)] * 2)
    assert set(EULER) < set(ROTATION_COLUMNS)
