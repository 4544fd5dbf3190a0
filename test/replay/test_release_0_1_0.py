"""Offline replay and the node's parameters give what release 0.1.0 (commit 45242c3) gave.

The golden file was recorded with that commit: two replays of the demo's bag with random:tiny on
the CPU, and the table of parameters.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pi05_ros.bags.bag import Bag
from pi05_ros.policy import Policy
from pi05_ros.replay.demo_bag import SceneOptions, make_demo_bag
from pi05_ros.replay.run import choose, run_offline
from pi05_ros.runtime.parameters import SPECS, PolicyParameters

GOLDEN = json.loads(
    (Path(__file__).parents[1] / "data" / "golden" / "release_0_1_0.json").read_text()
)
CHANGED: dict[str, list[Any]] = {"denoise_steps": ["integer", 0, "0 to 20", True]}
"""Parameters that differ on purpose: name -> type, default, accepted, dynamic."""


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    options = SceneOptions(seconds=1.5, width=64, height=48, renderer="ray")
    return make_demo_bag(tmp_path_factory.mktemp("golden") / "bag", options).path


@pytest.mark.parametrize("name", list(GOLDEN["replays"]))
def test_offline_replay_of_the_demo_bag(
    demo: Path, policy: Policy, tmp_path: Path, name: str
) -> None:
    golden = GOLDEN["replays"][name]
    values = dict(golden["parameters"])
    loops = values.pop("loops")
    parameters = PolicyParameters.from_values(
        {"checkpoint": "random:tiny", "threads": 1, "denoise_steps": 10, **values}
    )
    with Bag(demo) as bag:
        chosen = choose(bag, policy.robot, {})
    outcome = run_offline(demo, chosen, parameters, tmp_path, "auto", loops, policy)
    summary = outcome.summary
    assert summary.expected == golden["expected"]
    assert dict(summary.skipped) == golden["skipped"]
    assert list(summary.notes) == golden["notes"]
    assert round(summary.active_s, 6) == golden["active_s"]
    assert len(outcome.chunks) == len(golden["chunks"])
    for chunk, wanted in zip(outcome.chunks, golden["chunks"], strict=True):
        for key in ("chunk_id", "seed", "prompt", "observation_ns", "received_ns", "steps_past"):
            assert getattr(chunk, key) == wanted[key], key
        assert dict(chunk.inputs) == wanted["inputs"]
        # Written with six decimals; another CPU may round the last bits differently.
        np.testing.assert_allclose(chunk.data[[0, -1]], wanted["data"], rtol=0, atol=1e-5)


def test_parameters_of_the_release_are_still_there() -> None:
    for name, golden in GOLDEN["parameters"].items():
        spec = SPECS[name]
        default = list(spec.default) if isinstance(spec.default, tuple) else spec.default
        accepted = spec.accepted
        if spec.choices:  # further choices may be added
            old = golden[2].removeprefix("one of ").split(", ")
            accepted = "one of " + ", ".join(word for word in spec.choices if word in old)
        now = [spec.type_name, default, accepted, not spec.read_only]
        assert now == CHANGED.get(name, golden), name
