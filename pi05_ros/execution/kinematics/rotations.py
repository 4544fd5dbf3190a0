"""Rotations as pose actions write them, to matrices and back; numpy only.

The names are those of `policy.pose_groups`. A matrix takes vectors from the axes of the tool to
those of the frame from which it is seen.
"""

from __future__ import annotations

import numpy as np

from pi05_ros.errors import Pi05Error
from pi05_ros.policy.pose_groups import (
    EULER,
    NO_ROTATION,
    QUATERNION_WXYZ,
    QUATERNION_XYZW,
    ROT6D_COLUMNS,
    ROT6D_ROWS,
    ROTATION_VECTOR,
)

NORM_TOLERANCE = 0.1
"""How far the length of a quaternion may be from 1; it is normalized within that."""
MIN_6D = 1e-2
"""Least length of the two vectors of a rot6d, and of the second without the first's part."""
MAX_ANGLE = 2 * np.pi + 1e-6
"""Larger angles are in another unit."""


class RotationError(Pi05Error, ValueError):
    """Numbers that are no rotation of the declared kind."""


def to_matrices(values: np.ndarray, kind: str) -> np.ndarray:
    """Rotation matrices ``[k, 3, 3]`` of rows ``[k, columns]``.

    Raises:
        RotationError: names the row and what is accepted.

    """
    values = np.asarray(values, np.float64)
    if not np.isfinite(values).all():
        raise RotationError("a rotation holds NaN or infinite values")
    if kind == NO_ROTATION:
        return np.broadcast_to(np.eye(3), (len(values), 3, 3)).copy()
    if kind in (QUATERNION_XYZW, QUATERNION_WXYZ):
        norm = np.linalg.norm(values, axis=1)
        _check(np.abs(norm - 1) <= NORM_TOLERANCE, norm, "a quaternion has length", "0.9 to 1.1")
        quaternions = values / norm[:, None]
        if kind == QUATERNION_WXYZ:
            quaternions = np.roll(quaternions, -1, axis=1)
        return _of_quaternions(quaternions)
    if kind in (ROT6D_COLUMNS, ROT6D_ROWS):
        matrices = _of_two_vectors(values[:, :3], values[:, 3:])
        return matrices if kind == ROT6D_COLUMNS else matrices.transpose(0, 2, 1)
    if kind == ROTATION_VECTOR:
        angle = np.linalg.norm(values, axis=1)
        _check(angle <= MAX_ANGLE, angle, "a rotation vector has length", "up to 2 pi, in rad")
        return exp(values)
    if kind not in EULER:
        raise RotationError(f"rotation {kind!r:.80} is not known")
    largest = np.abs(values).max(axis=1, initial=0.0)
    _check(largest <= MAX_ANGLE, largest, "an Euler angle is", "-2 pi to 2 pi, in rad")
    axes, intrinsic = _euler(kind)
    parts = [_about(axis, values[:, i]) for i, axis in enumerate(axes)]
    if not intrinsic:
        parts.reverse()
    return np.asarray(parts[0] @ parts[1] @ parts[2])


def from_matrices(matrices: np.ndarray, kind: str) -> np.ndarray:
    """The inverse of `to_matrices`: rows ``[k, columns]``.

    Quaternions have w >= 0, rotation vectors at most pi, and the last of three Euler angles is 0
    where only its sum with the first is determined.
    """
    matrices = np.asarray(matrices, np.float64)
    k = len(matrices)
    if kind == NO_ROTATION:
        return np.zeros((k, 0))
    if kind in (QUATERNION_XYZW, QUATERNION_WXYZ):
        quaternions = _quaternions(matrices)
        return quaternions if kind == QUATERNION_XYZW else np.roll(quaternions, 1, axis=1)
    if kind == ROT6D_COLUMNS:
        return matrices[:, :, :2].transpose(0, 2, 1).reshape(k, 6)
    if kind == ROT6D_ROWS:
        return matrices[:, :2].reshape(k, 6)
    if kind == ROTATION_VECTOR:
        return log(matrices)
    if kind not in EULER:
        raise RotationError(f"rotation {kind!r:.80} is not known")
    axes, intrinsic = _euler(kind)
    if intrinsic:
        return _euler_angles(matrices, *axes)
    return _euler_angles(matrices, *axes[::-1])[:, ::-1].copy()


def exp(vectors: np.ndarray) -> np.ndarray:
    """Rotation matrices ``[k, 3, 3]`` of rotation vectors ``[k, 3]``."""
    half = np.linalg.norm(vectors, axis=1, keepdims=True) / 2
    share = 0.5 * np.sinc(half / np.pi)  # sin(half) / angle
    return _of_quaternions(np.hstack([vectors * share, np.cos(half)]))


def log(matrices: np.ndarray) -> np.ndarray:
    """Rotation vectors ``[k, 3]`` of matrices ``[k, 3, 3]``, at most pi long."""
    quaternions = _quaternions(matrices)
    sine = np.linalg.norm(quaternions[:, :3], axis=1, keepdims=True)
    angle = 2 * np.arctan2(sine, quaternions[:, 3:])
    share = np.where(sine > 1e-12, angle / np.maximum(sine, 1e-300), 2.0)
    return np.asarray(quaternions[:, :3] * share)


def _check(good: np.ndarray, values: np.ndarray, what: str, accepted: str) -> None:
    bad = np.flatnonzero(~good)
    if len(bad):
        raise RotationError(f"step {bad[0]}: {what} {values[bad[0]]:.4g}; accepted: {accepted}")


def _of_quaternions(q: np.ndarray) -> np.ndarray:
    x, y, z, w = q.T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return np.asarray(np.moveaxis(np.array(rows), 2, 0))


def _quaternions(matrices: np.ndarray) -> np.ndarray:
    """Unit quaternions x, y, z, w ``[k, 4]`` with w >= 0: from the largest of four squares."""
    m = matrices
    d0, d1, d2 = m[:, 0, 0], m[:, 1, 1], m[:, 2, 2]
    skew = [m[:, 2, 1] - m[:, 1, 2], m[:, 0, 2] - m[:, 2, 0], m[:, 1, 0] - m[:, 0, 1]]
    xy, xz, yz = m[:, 0, 1] + m[:, 1, 0], m[:, 0, 2] + m[:, 2, 0], m[:, 1, 2] + m[:, 2, 1]
    # Four times the outer product of the quaternion with itself.
    outer = np.moveaxis(
        np.array(
            [
                [1 + d0 - d1 - d2, xy, xz, skew[0]],
                [xy, 1 - d0 + d1 - d2, yz, skew[1]],
                [xz, yz, 1 - d0 - d1 + d2, skew[2]],
                [skew[0], skew[1], skew[2], 1 + d0 + d1 + d2],
            ]
        ),
        2,
        0,
    )
    largest = np.argmax(np.diagonal(outer, axis1=1, axis2=2), axis=1)
    q = outer[np.arange(len(m)), largest]
    q = q / np.linalg.norm(q, axis=1, keepdims=True)
    return np.asarray(np.where(q[:, 3:] < 0, -q, q))


def _of_two_vectors(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Matrices whose first columns point along ``first`` and whose second are near ``second``."""
    length = np.linalg.norm(first, axis=1)
    _check(length >= MIN_6D, length, "the first vector of a rot6d has length", f"from {MIN_6D:g}")
    x = first / length[:, None]
    rest = second - np.sum(x * second, axis=1, keepdims=True) * x
    length = np.linalg.norm(rest, axis=1)
    _check(
        length >= MIN_6D,
        length,
        "the second vector of a rot6d has, across the first, length",
        f"from {MIN_6D:g}",
    )
    y = rest / length[:, None]
    return np.stack([x, y, np.cross(x, y)], axis=2)


def _euler(kind: str) -> tuple[tuple[int, int, int], bool]:
    """Axes (0 to 2) and whether they turn along, of a name."""
    _, axes, words = kind.split("_")
    i, j, k = ("xyz".index(axis) for axis in axes)
    return (i, j, k), words == "intrinsic"


def _about(axis: int, angles: np.ndarray) -> np.ndarray:
    vectors = np.zeros((len(angles), 3))
    vectors[:, axis] = angles
    return exp(vectors)


def _euler_angles(m: np.ndarray, i: int, j: int, k: int) -> np.ndarray:
    """Angles ``[n, 3]`` about axes that turn along: ``m = R_i(a) R_j(b) R_k(c)``."""
    proper = i == k
    if proper:
        k = 3 - i - j
    sign = 1.0 if (j - i) % 3 == 1 else -1.0
    if proper:
        middle = np.arctan2(np.hypot(m[:, i, j], m[:, i, k]), m[:, i, i])
        free = np.abs(np.sin(middle)) > 1e-7
        first = np.arctan2(m[:, j, i], -sign * m[:, k, i])
        last = np.arctan2(m[:, i, j], sign * m[:, i, k])
    else:
        middle = np.arctan2(sign * m[:, i, k], np.hypot(m[:, i, i], m[:, i, j]))
        free = np.abs(np.cos(middle)) > 1e-7
        first = np.arctan2(-sign * m[:, j, k], m[:, k, k])
        last = np.arctan2(-sign * m[:, i, j], m[:, i, i])
    locked = np.arctan2(sign * m[:, k, j], m[:, j, j])
    return np.stack([np.where(free, first, locked), middle, np.where(free, last, 0.0)], axis=1)
