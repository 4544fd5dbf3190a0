"""Stops and hand-overs of the benchmark's matrix, a part of it: v, a and j within the limits."""

from __future__ import annotations

import pytest

from pi05_ros.bench.stop_matrix import EVENTS, PHASES, STATES, shares


@pytest.mark.parametrize("way", ["off", "path", "ruckig"])
def test_no_stop_in_any_state_leaves_the_limits(way):
    if way == "ruckig":
        pytest.importorskip("ruckig")
    most = {}
    for k, state in enumerate(STATES):
        for event in list(EVENTS)[k % 7 :: 7]:
            most[state, event] = shares(state, event, way, PHASES[k % len(PHASES)]).max()
    assert max(most.values()) <= 1 + 1e-6, {k: v for k, v in most.items() if v > 1}
    assert max(most.values()) > 0.9  # something moved
