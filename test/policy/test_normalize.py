"""Normalization: the formulas of both families, their constants, and exact round trips."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pi05_ros.policy import PolicyError
from pi05_ros.policy.transforms.normalize import LEROBOT_EPS, NEEDED, Normalizer

STATS = {
    "mean": np.array([1.0, -2.0, 0.0]),
    "std": np.array([0.5, 2.0, 0.0]),
    "q01": np.array([-1.0, 0.0, 3.0]),
    "q99": np.array([1.0, 4.0, 3.0]),
    "q10": np.array([-0.5, 1.0, 3.0]),
    "q90": np.array([0.5, 3.0, 3.0]),
    "min": np.array([-2.0, -1.0, 3.0]),
    "max": np.array([2.0, 5.0, 3.0]),
}
X = np.array([0.25, 1.0, 3.5])


def make(kind, family):
    eps = {"eps": LEROBOT_EPS} if family == "lerobot" else {}
    return Normalizer(kind, STATS, family=family, **eps)


def test_openpi_formulas():
    q = make("quantile", "openpi").normalize(X)
    expected = [
        (0.25 + 1) / (2 + 1e-6) * 2 - 1,
        1 / (4 + 1e-6) * 2 - 1,
        0.5 / 1e-6 * 2 - 1,
    ]
    np.testing.assert_allclose(q, expected, rtol=1e-12)
    z = make("zscore", "openpi").normalize(X)
    np.testing.assert_allclose(z, [-0.75 / (0.5 + 1e-6), 3 / (2 + 1e-6), 3.5 / 1e-6], rtol=1e-12)
    y = np.array([0.5, -1.0, 0.0])
    np.testing.assert_allclose(
        make("quantile", "openpi").unnormalize(y),
        [1.5 / 2 * (2 + 1e-6) - 1, 0.0, 0.5 * 1e-6 + 3],
        rtol=1e-12,
    )
    np.testing.assert_allclose(
        make("zscore", "openpi").unnormalize(y),
        [0.5 * (0.5 + 1e-6) + 1, -(2 + 1e-6) - 2, 0.0],
        rtol=1e-12,
    )


def test_lerobot_formulas_are_float32_with_eps_only_for_zero_ranges():
    for kind, low, high in (
        ("quantile", "q01", "q99"),
        ("quantile10", "q10", "q90"),
        ("minmax", "min", "max"),
    ):
        normalizer = make(kind, "lerobot")
        x = X.astype(np.float32)
        a, b = (STATS[n].astype(np.float32) for n in (low, high))
        span = np.where(b - a == 0, np.float32(1e-8), b - a)
        out = normalizer.normalize(X)
        assert out.dtype == np.float32
        np.testing.assert_array_equal(out, np.float32(2) * (x - a) / span - np.float32(1))
        np.testing.assert_allclose(normalizer.unnormalize(out), X, rtol=1e-6, atol=1e-6)
    z = make("zscore", "lerobot")
    expected = (X[:2].astype(np.float32) - STATS["mean"][:2].astype(np.float32)) / (
        STATS["std"][:2].astype(np.float32) + np.float32(1e-8)
    )
    np.testing.assert_array_equal(z.normalize(X)[:2], expected)
    np.testing.assert_array_equal(z.unnormalize(np.ones(3)), [1.5, 0.0, 0.0])  # no eps back


def test_nothing_is_clipped():
    out = make("quantile", "openpi").normalize(np.array([100.0]))
    assert out[0] > 90


def test_statistics_longer_than_the_data_are_cut_and_shorter_ones_refused():
    normalizer = make("quantile", "openpi")
    np.testing.assert_array_equal(normalizer.normalize(X[:2]), normalizer.normalize(X)[:2])
    with pytest.raises(PolicyError, match="4 values, but the statistics cover only 3"):
        normalizer.normalize(np.zeros(4))


def test_columns_beyond_the_statistics_pass_on_the_way_out():
    y = np.full((2, 5), 0.5)
    out = make("quantile", "openpi").unnormalize(y)
    np.testing.assert_array_equal(out[:, 3:], 0.5)
    z = make("zscore", "openpi").unnormalize(y)
    np.testing.assert_allclose(z[:, 3:], 0.5 * (1 + 1e-6), rtol=1e-12)


def test_identity_passes_everything():
    np.testing.assert_array_equal(Normalizer("identity").normalize(X), X)
    np.testing.assert_array_equal(Normalizer("identity").unnormalize(X), X)


def test_wrong_kind_missing_or_broken_statistics():
    with pytest.raises(PolicyError, match="accepted: quantile"):
        Normalizer("q99", STATS)
    with pytest.raises(PolicyError, match=r"needs the statistics q01, q99; missing: q01, q99"):
        Normalizer("quantile", {"mean": X, "std": X})
    with pytest.raises(PolicyError, match="shape"):
        Normalizer("quantile", {"q01": np.zeros(2), "q99": np.ones(3)})
    with pytest.raises(PolicyError, match="NaN"):
        Normalizer("zscore", {"mean": np.array([np.nan]), "std": np.ones(1)})


finite = st.floats(-100, 100)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(sorted(set(NEEDED) - {"identity"})),
    st.sampled_from(["openpi", "lerobot"]),
    st.lists(st.tuples(finite, finite, st.floats(1e-3, 100)), min_size=1, max_size=14),
)
def test_round_trip_over_any_state(kind, family, rows):
    """Relative to the largest number in play: 1e-13 in float64, 1e-4 in float32.

    LeRobot's float32 loses digits where a value lies far outside a narrow range.
    """
    x, a, width = (np.array(column) for column in zip(*rows, strict=True))
    names = NEEDED[kind]
    stats = {names[0]: a, names[1]: width if kind == "zscore" else a + width}
    eps = {"eps": LEROBOT_EPS} if family == "lerobot" else {}
    normalizer = Normalizer(kind, stats, family=family, **eps)
    back = normalizer.unnormalize(normalizer.normalize(x))
    scale = 1.0 + np.abs(x) + np.abs(a) + width
    assert np.max(np.abs(back - x) / scale) <= (1e-13 if family == "openpi" else 1e-4)
