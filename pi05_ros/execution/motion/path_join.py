"""From the present command onto the path of a new chunk."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pi05_ros.execution.limit_sources.joint_limits import JointLimits
from pi05_ros.execution.motion.polyline import Bounds, Place, Polyline, Row
from pi05_ros.execution.timed_chunk import TimedChunk

ON_PATH = 1e-6
"""A command this near to the path (rad, m) is on it."""
GENTLE_S = 0.25
"""A transition takes up to this time with half of the acceleration limit; longer ones hurry."""
_SHARES = np.array([[4.0], [0.5], [1.0]])
"""Of the acceleration limit: in a hurry, gentle, all of it."""
_SAMPLES = np.linspace(0, 1, 13)
_FAR = 1e6  # targets farther out are no other targets; their squares would overflow


def join(
    chunk: TimedChunk,
    position: np.ndarray,
    move: Row | None,
    clock: float,
    limits: JointLimits,
    bounds: Bounds,
    period_s: float,
    speed_scale_max: float,
    blend_in_s: float = 0.0,
) -> Iterator[tuple[Polyline, Place]]:
    """Paths onto a chunk, the best one first, each with the place of the present command on it.

    At rest: a straight line to where the chunk is now. In motion: the chunk's path plus an offset
    that decays, with the present velocity at its start. A command that lies on the chunk's path
    already, now or before, goes on from there without a transition.

    Args:
        chunk: the new one.
        position: present command ``[n]``.
        move: joint move of the last period; None at rest.
        clock: progress of the chunk that belongs to the present time.
        limits, bounds, period_s, speed_scale_max, blend_in_s: as in `PathFilter`.

    """
    grid = np.arange(chunk.horizon) * (chunk.step_ns / 1e9)
    points = np.minimum(np.maximum(chunk.positions, -_FAR), _FAR)
    zero = (0.0,) * len(position)
    entry = _entry(grid, points, position, clock)
    if entry is not None:
        path = _polyline(grid, points, entry, position, limits, bounds)
        if move is None:
            yield path, Place(0, entry, zero, 0.0)
            return
        yield path, Place(0, entry, move)
    if move is not None:
        clock -= period_s  # the present command belongs to the period before
    exact = _at(grid, points, clock)
    if clock < 0 and move is not None:
        exact = exact + clock * _slope(grid, points, 0.0)
    here = np.clip(exact, limits.lower, limits.upper)
    offset = position - here
    if move is None:
        travel = float(np.max(np.abs(offset) / limits.velocity, initial=0.0))
        start = clock - max(travel, period_s, blend_in_s)
        later = int(grid.searchsorted(clock + 1e-9, side="right"))
        s = np.concatenate([[start, clock], grid[later:]])
        rows = np.vstack([position, here, points[later:]])
        path = _bounded(s, rows, limits, bounds)
        yield path, Place(0, start, zero, 0.0)
        return
    velocity = np.array(move) / period_s
    slope = np.where(here == exact, _slope(grid, points, clock), 0.0)
    for ahead in _velocity_offsets(velocity, slope, limits, period_s, speed_scale_max):
        durations = np.maximum(_durations(offset, ahead, limits), blend_in_s)
        blends = _blended(grid, points, clock, position, offset, ahead, durations, limits)
        for s, rows in zip(*blends, strict=True):
            once = np.concatenate([[True], s[1:] != s[:-1]])
            if once.all():
                yield _bounded(s, rows, limits, bounds), Place(0, clock, move)
            else:
                yield _bounded(s[once], rows[once], limits, bounds), Place(0, clock, move)


def _durations(offset: np.ndarray, ahead: np.ndarray, limits: JointLimits) -> np.ndarray:
    """How long a transition may take ``[3]``, the best first.

    The acceleration of the transition is at most a share of the limit, see `_blended`: a small
    one for small offsets; far away, more than the limit, and slowing down time does the rest.
    """
    far, fast, a = np.abs(offset), np.abs(ahead), limits.acceleration
    root = np.sqrt(16 * fast**2 + 24 * _SHARES * a * far)
    hard, soft, full = ((4 * fast + root) / (2 * _SHARES * a)).max(axis=1).tolist()
    return np.array([max(hard, min(soft, GENTLE_S)), full, soft])


def _velocity_offsets(
    velocity: np.ndarray,
    slope: np.ndarray,
    limits: JointLimits,
    period_s: float,
    speed_scale_max: float,
) -> Iterator[np.ndarray]:
    """Velocity that the transition has to add: none if the arm moves along the chunk's path."""
    weight = 1 / limits.acceleration**2
    length = float(np.sum(weight * slope * slope))
    scale = float(np.sum(weight * velocity * slope)) / length if length > 0 else 0.0
    scale = min(max(scale, 0.0), speed_scale_max)
    rest = np.abs(velocity - scale * slope)
    if (rest <= 0.5 * limits.acceleration * period_s).all():
        yield np.zeros_like(velocity)
    yield velocity - slope


def _blended(
    grid: np.ndarray,
    points: np.ndarray,
    clock: float,
    position: np.ndarray,
    offset: np.ndarray,
    ahead: np.ndarray,
    durations: np.ndarray,
    limits: JointLimits,
) -> tuple[np.ndarray, np.ndarray]:
    """The chunk's path plus a cubic that starts with an offset and a velocity and ends with none.

    ``e(x) = offset (1 - 3x^2 + 2x^3) + T ahead (x - 2x^2 + x^3)``, ``x = (s - clock) / T``, whose
    largest second derivative is at most ``6 offset / T^2 + 4 ahead / T``. All durations ``[d]``
    at once, which takes hardly longer than one: progress ``[d, k]``, rising, some of it twice, and
    joint positions ``[d, k, n]``.
    """
    durations = np.maximum(durations, 1e-3)[:, None]
    later = grid[int(grid.searchsorted(clock + 1e-9, side="right")) :]
    s = np.empty((len(durations), len(_SAMPLES) + len(later)))
    s[:, : len(_SAMPLES)] = clock + durations * _SAMPLES
    s[:, len(_SAMPLES) :] = later
    s.sort(axis=1)
    x = np.minimum((s - clock) / durations, 1.0)[:, :, None]
    square, cube = x**2, x**3
    wave = offset * (1 - 3 * square + 2 * cube)
    if ahead.any():
        wave += durations[:, :, None] * ahead * (x - 2 * square + cube)
    rows = _at_many(grid, points, s.reshape(-1)).reshape(wave.shape)
    if clock < grid[0]:
        rows += np.minimum(s - grid[0], 0.0)[:, :, None] * _slope(grid, points, 0.0)
    rows = np.minimum(np.maximum(rows, limits.lower), limits.upper) + wave
    rows[:, 0] = position
    return s, rows


def _polyline(
    grid: np.ndarray,
    positions: np.ndarray,
    entry: float,
    position: np.ndarray,
    limits: JointLimits,
    bounds: Bounds,
) -> Polyline:
    """The chunk's path from a progress on, where the present command is."""
    later = int(grid.searchsorted(entry + 1e-9, side="right"))
    s = np.concatenate([[entry], grid[later:]])
    return _bounded(s, np.vstack([position, positions[later:]]), limits, bounds)


def _bounded(s: np.ndarray, rows: np.ndarray, limits: JointLimits, bounds: Bounds) -> Polyline:
    """Path clipped into the position limits, exactly: with vertices where it crosses one.

    The first vertex is the present command and stays, also outside the limits.
    """
    dense, every = rows, s
    if ((rows > limits.upper) | (rows < limits.lower))[1:].any():
        cuts = [s]
        for bound in (limits.lower, limits.upper):
            side = rows - bound
            i, column = np.nonzero(side[:-1] * side[1:] < 0)
            share = side[i, column] / (side[i, column] - side[i + 1, column])
            cuts.append(s[i] + share * (s[i + 1] - s[i]))
        every = np.unique(np.concatenate(cuts))
        every = every[np.concatenate([[True], np.diff(every) > 1e-9])]
        dense = np.clip(_at_many(s, rows, every), limits.lower, limits.upper)
        dense[0] = rows[0]
    if len(every) == 1:
        every = np.array([every[0], every[0] + 1e-3])
        dense = np.vstack([dense, np.clip(dense, limits.lower, limits.upper)])
    return Polyline(every, dense, bounds)


def _entry(
    grid: np.ndarray, points: np.ndarray, position: np.ndarray, clock: float
) -> float | None:
    """Last progress up to the clock at which the path passes the present command, or None."""
    count = min(int(np.searchsorted(grid, clock, side="right")) + 1, len(grid))
    begin, end = points[: count - 1], points[1:count]
    nowhere = np.minimum(begin, end) > position + 2 * ON_PATH
    nowhere |= np.maximum(begin, end) < position - 2 * ON_PATH
    if not nowhere.any(axis=1).all():
        along = end - begin
        length = np.sum(along * along, axis=1)
        safe = np.where(length > 0, length, 1.0)
        share = np.clip(np.sum((position - begin) * along, axis=1) / safe, 0, 1)
        share = np.where(length > 0, share, 1.0)
        step = grid[1:count] - grid[: count - 1]
        place = np.minimum(grid[: count - 1] + share * step, clock)
        share = (place - grid[: count - 1]) / step
        near = np.abs(begin + share[:, None] * along - position).max(axis=1) <= ON_PATH
        hits = np.flatnonzero(near & (place >= grid[: count - 1]))
        if len(hits):
            return float(place[hits[-1]])
    first = points[0] if clock <= grid[0] or len(grid) == 1 else points[-1]
    if (len(grid) == 1 or clock >= grid[-1] or clock <= grid[0]) and (
        np.abs(first - position).max() <= ON_PATH
    ):
        return float(min(max(clock, grid[0]), grid[-1]))
    return None


def _at(grid: np.ndarray, points: np.ndarray, s: float) -> np.ndarray:
    """Point ``[n]`` of a path at a progress; the ends are held."""
    if len(grid) == 1:
        return np.asarray(points[0])
    i = min(max(int(grid.searchsorted(s, side="right")) - 1, 0), len(grid) - 2)
    share = min(max((s - grid[i]) / (grid[i + 1] - grid[i]), 0.0), 1.0)
    return np.asarray((1 - share) * points[i] + share * points[i + 1])


def _at_many(grid: np.ndarray, points: np.ndarray, s: np.ndarray) -> np.ndarray:
    """Points ``[k, n]`` of a path at progresses ``[k]``, as `_at`."""
    if len(grid) == 1:
        return points.repeat(len(s), axis=0)
    low = grid.searchsorted(s, side="right") - 1
    low = np.minimum(np.maximum(low, 0), len(grid) - 2)
    high = low + 1
    begin = grid[low]
    share = np.minimum(np.maximum((s - begin) / (grid[high] - begin), 0.0), 1.0)[:, None]
    return np.asarray((1 - share) * points[low] + share * points[high])


def _slope(grid: np.ndarray, points: np.ndarray, s: float) -> np.ndarray:
    """Change of a path per unit of progress just behind ``s``; 0 behind its end."""
    if len(grid) == 1 or s >= grid[-1]:
        return np.zeros(points.shape[1])
    i = max(0, int(np.searchsorted(grid, s, side="right") - 1))
    return np.asarray((points[i + 1] - points[i]) / (grid[i + 1] - grid[i]))
