"""Statistics against units and joint limits: wrong units are named, plausible robots are not."""

import dataclasses
import math

import numpy as np
import pytest

from pi05_ros.policy import load_profile
from pi05_ros.policy.checkpoints.plausibility import statistics_doubts
from pi05_ros.policy.robots.units import Unit, UnitMap
from pi05_ros.policy.transforms.normalize import Normalization, Normalizer

KINDS = ("quantile", "zscore", "minmax")


def normalizer(low, high, kind="quantile"):
    """Statistics of values spread evenly between low and high."""
    low, high = np.array(low, float), np.array(high, float)
    if kind == "zscore":
        return Normalizer(kind, {"mean": (low + high) / 2, "std": (high - low) / math.sqrt(12)})
    names = {"quantile": ("q01", "q99"), "minmax": ("min", "max")}[kind]
    return Normalizer(kind, dict(zip(names, (low, high), strict=True)))


PLAUSIBLE = {
    "droid": (
        ([-0.9, -0.8, -0.8, -2.8, -0.9, 1.2, -2, 0], [0.9, 1.2, 0.8, -1, 0.9, 3.2, 2, 1]),
        ([-0.45] * 7 + [0], [0.45] * 7 + [1]),
    ),
    "aloha": (([-1.5] * 14, [1.6] * 14), ([-1.5] * 14, [1.6] * 14)),
    "libero": (
        ([-0.4, -0.4, 0, 2, -3, -2, 0, -0.04], [0.2, 0.4, 1.3, 3.6, 3.6, 1, 0.04, 0]),
        ([-0.9] * 3 + [-0.3] * 3 + [-1], [0.9] * 3 + [0.3] * 3 + [1]),
    ),
    "ur5e": (
        ([-6, -3, -3, -6, -6, -6, 0], [6, 3, 3, 6, 6, 6, 1]),
        ([-0.5] * 7, [0.5] * 6 + [1]),
    ),
    "so101": (
        ([-90, -100, -90, -90, -150, 0], [90, 100, 95, 95, 150, 100]),
        ([-90, -100, -90, -90, -150, 0], [90, 100, 95, 95, 150, 100]),
    ),
    "so101_range": (([-95] * 5 + [0], [98] * 5 + [99]), ([-95] * 5 + [0], [98] * 5 + [99])),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("robot", PLAUSIBLE)
def test_nothing_is_said_of_what_such_robots_do(robot, kind):
    state, actions = (normalizer(*ends, kind) for ends in PLAUSIBLE[robot])
    assert statistics_doubts(load_profile(robot), Normalization(state, actions)) == ()


def of(unit, low, high, kind="quantile", count=2, **more):
    """Doubts of a robot whose absolute columns have one unit and one range."""
    profile = load_profile("sim_arm")
    map_ = UnitMap(unit, **more)
    names = tuple("abcdef"[:count])
    profile = dataclasses.replace(
        profile,
        state_names=names,
        state_maps=(map_,) * count,
        action_names=names,
        action_maps=(map_,) * count,
        action_meanings=profile.action_meanings[:count],
        delta_mask=(),
        ranges=None,
    )
    stats = normalizer([low] * count, [high] * count, kind)
    return statistics_doubts(profile, Normalization(stats, stats))


@pytest.mark.parametrize(
    ("unit", "low", "high", "words"),
    [
        (Unit.RADIAN, -90, 90, "are they in degrees?"),
        (Unit.RADIAN, 0, 180, "are they in degrees?"),
        (Unit.METRE, 0, 85, "are they in millimeters?"),
        (Unit.GRIPPER_OPEN_0_CLOSED_1, 0, 100, "are they in percent, degrees or millimeters?"),
        (Unit.NORMALIZED, -100, 100, "are they in percent or degrees?"),
        (Unit.DEGREE, -1.5, 1.5, "are they in radians?"),
        (Unit.PERCENT, 0, 1, "are they in shares of 1?"),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_numbers_of_another_unit(unit, low, high, words, kind):
    assert any(words in doubt for doubt in of(unit, low, high, kind))


def test_the_map_counts():
    """Statistics are the model's numbers; what they become on the robot is compared."""
    assert of(Unit.RADIAN, -90, 90, robot_span=math.pi / 180) == ()
    assert of(Unit.RADIAN, 0, 100, model_span=100, robot_span=1.5) == ()
    assert of(Unit.DEGREE, 0, 360) == ()
    assert any("degrees?" in d for d in of(Unit.DEGREE, 0, 36000))


def test_limits():
    inside = {"limits": (-1.0, 1.0)}
    assert of(Unit.RADIAN, -1.1, 1.0, **inside) == ()
    (first, *_) = of(Unit.RADIAN, -1.5, 1.0, **inside)
    assert "state 'a' reach from -1.5 to 1 radian, outside of its limits -1 to 1" in first
    assert of(Unit.RADIAN, -1.0, 1.0, "zscore", **inside) == ()
    assert of(Unit.RADIAN, -90, 90, "zscore", **inside)
    assert of(Unit.RADIAN, -50, 50, limits=(-100.0, 100.0)) == ()  # a joint that turns so far
    profile = load_profile("ur5e")
    stats = normalizer(*PLAUSIBLE["ur5e"][0])
    doubts = statistics_doubts(profile, Normalization(stats), {"elbow_joint": (-1.0, 1.0)})
    assert len(doubts) == 1
    assert "state 'elbow_joint'" in doubts[0]


def test_many_columns_are_one_sentence_more():
    doubts = of(Unit.RADIAN, -90, 90, count=6)
    assert sum("'" in doubt for doubt in doubts) == 6
    assert "the same of 3 more of the state columns" in doubts
