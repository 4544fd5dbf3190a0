"""Recorded demonstrations read back as bags, with what was seen and commanded."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from pi05_ros.bags.bag import Bag
from pi05_ros.sim.arm.scripted_expert import expert_target
from pi05_ros.sim.arm.tasks import TASKS
from pi05_ros.sim.arm.world import World
from pi05_ros.sim.training.record import KEY, main


def test_a_recorded_episode_holds_pictures_states_and_the_experts_commands(tmp_path):
    assert main([str(tmp_path), "--episodes", "1", "--seed", "6"]) == 0
    world = World()
    world.reset(6)
    with Bag(tmp_path / "pick_red-6") as bag:
        facts = json.loads(bag.custom[KEY])
        messages = list(bag.messages())
        assert bag.custom["outcome"] == "success"
    assert facts == {"task": "pick_red", "prompt": "pick up the red block", "seed": 6}
    counts = Counter(message.topic for message in messages)
    steps = counts["/joint_states"]
    assert steps > 20
    assert counts["/joint_commands"] == counts["/base_camera/image_raw"] == steps
    first = {m.topic: m.decode() for m in messages[:5]}
    assert np.allclose(first["/joint_states"].position, world.joint_positions)
    want = expert_target(world, TASKS["pick_red"])
    assert np.allclose(first["/joint_commands"].position, want)
    picture = np.asarray(first["/base_camera/image_raw"].data).reshape(224, 224, 3)
    assert np.array_equal(picture, world.render("base"))


@pytest.mark.parametrize("words", ["--seed=-1", "--episodes 0"])
def test_bad_numbers_are_named(words, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path), *words.split()])
    assert "accepted: --episodes from 1, --seed from 0" in capsys.readouterr().err
