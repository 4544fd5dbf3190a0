"""openpi's norm_stats.json: where it is found and what is wrong with the ones that do not fit."""

import dataclasses
import json

import numpy as np
import pytest

from pi05_ros.policy import PolicyError, load_profile
from pi05_ros.policy.checkpoints.norm_stats import (
    openpi_normalization,
    range_normalization,
    read_norm_stats,
)


def write(checkpoint, asset_id, states=8, actions=7, **extra):
    folder = checkpoint / "assets" / asset_id
    folder.mkdir(parents=True)

    def stats(n):
        return {"mean": [0.0] * n, "std": [1.0] * n, "q01": [-1.0] * n, "q99": [3.0] * n, **extra}

    data = {"norm_stats": {"state": stats(states), "actions": stats(actions)}}
    (folder / "norm_stats.json").write_text(json.dumps(data))
    return folder / "norm_stats.json"


def test_asset_id_with_a_slash(tmp_path):
    path = write(tmp_path, "physical-intelligence/libero")
    write(tmp_path, "other")
    norm = openpi_normalization(tmp_path, load_profile("libero"))
    assert norm.source == str(path)
    np.testing.assert_allclose(norm.state.normalize(np.ones(8)), 0.0, atol=1e-6)


def test_the_only_file_is_used_whatever_its_name(tmp_path):
    path = write(tmp_path, "my/robot")
    norm = openpi_normalization(tmp_path, load_profile("libero"))
    assert norm.source == str(path)
    (doubt,) = norm.doubts  # it may be another robot's
    assert str(path) in doubt
    assert "'physical-intelligence/libero'" in doubt
    weights = tmp_path / "model.safetensors"
    weights.touch()
    assert openpi_normalization(weights, load_profile("libero")).source == str(path)


def test_files_that_are_links_as_in_the_hugging_face_cache(tmp_path):
    path = write(tmp_path / "snapshot", "physical-intelligence/libero")
    write(tmp_path / "snapshot", "other")
    blob = tmp_path / "blob"
    path.rename(blob)
    path.symlink_to(blob)
    norm = openpi_normalization(tmp_path / "snapshot", load_profile("libero"))
    assert (norm.source, norm.doubts) == (str(path), ())


def test_an_asset_id_cannot_lead_out_of_the_assets(tmp_path):
    write(tmp_path, "a")
    profile = dataclasses.replace(load_profile("libero"), asset_id="../assets/a")
    write(tmp_path, "b")
    with pytest.raises(PolicyError, match="one of: a, b"):
        openpi_normalization(tmp_path, profile)


def test_several_others_are_listed(tmp_path):
    write(tmp_path, "a")
    write(tmp_path, "b/c")
    with pytest.raises(PolicyError, match=r"'physical-intelligence/libero'.*one of: a, b/c"):
        openpi_normalization(tmp_path, load_profile("libero"))


def test_none_says_what_is_needed(tmp_path):
    with pytest.raises(PolicyError, match=r"no norm_stats\.json below .*assets"):
        openpi_normalization(tmp_path, load_profile("libero"))


def test_too_few_values_belong_to_another_robot(tmp_path):
    write(tmp_path, "droid", states=7)
    with pytest.raises(PolicyError, match="statistics for 7 values, robot 'droid' has 8"):
        openpi_normalization(tmp_path, load_profile("droid"))


def test_null_quantiles_are_named(tmp_path):
    write(tmp_path, "droid", actions=8, q01=None, q99=None)
    with pytest.raises(PolicyError, match="missing: q01, q99"):
        openpi_normalization(tmp_path, load_profile("droid"))


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"norm_stats": 3}', '{"norm_stats": {"state": []}}',
     '{"norm_stats": {"state": {"q01": "x"}}}',
     '{"norm_stats": {"state": {"q01": [1' + "0" * 400 + "]}}}",
     '{"norm_stats": {"state": {"q01": [[1]]}}}'],
)  # fmt: skip
def test_broken_files(tmp_path, text):
    path = tmp_path / "norm_stats.json"
    path.write_text(text)
    with pytest.raises(PolicyError, match=r"norm_stats\.json"):
        read_norm_stats(path)


def test_a_state_without_statistics_passes_unchanged_and_actions_do_not(tmp_path):
    path = write(tmp_path, "droid", actions=8)
    whole = json.loads(path.read_text())

    def without(key):
        data = {"norm_stats": {k: v for k, v in whole["norm_stats"].items() if k != key}}
        path.write_text(json.dumps(data))
        return openpi_normalization(tmp_path, load_profile("droid"))

    norm = without("state")
    assert norm.state.kind == "identity"
    (doubt,) = norm.doubts
    assert "no statistics for 'state' (it has actions)" in doubt
    with pytest.raises(PolicyError, match=r"no statistics for 'actions' \(it has state\)"):
        without("actions")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("q01", 5.0, "the statistic q01 is above q99 at value 1"),
        ("q99", 1e308, "q01 and q99 span more than can be computed with at value 1"),
        ("q99", float("nan"), "q99 holds NaN or infinite"),
    ],
)
@pytest.mark.parametrize("key", ["state", "actions"])
def test_statistics_that_cannot_be_used_are_named(tmp_path, key, name, value, words):
    path = write(tmp_path, "droid", actions=8)
    data = json.loads(path.read_text())
    data["norm_stats"][key][name][1] = value
    path.write_text(json.dumps(data))
    with pytest.raises(PolicyError, match=f"norm_stats.json: {key}: .*{words}"):
        openpi_normalization(tmp_path, load_profile("droid"))


def test_a_negative_deviation_is_named(tmp_path):
    path = write(tmp_path, "droid", actions=8, std=[1.0] * 7 + [-0.5])
    profile = dataclasses.replace(load_profile("droid"), normalization="zscore")
    with pytest.raises(PolicyError, match=r"std is negative at value 7 \(-0.5\)"):
        openpi_normalization(path.parents[2], profile)


def test_ranges_stand_in_where_there_are_no_statistics():
    norm = range_normalization(load_profile("sim_arm"))
    low = norm.state.normalize(np.array([-3.1416] * 6 + [0.0]))
    np.testing.assert_allclose(low, -1.0, atol=1e-6)
    np.testing.assert_allclose(norm.actions.unnormalize(np.ones(7)), [0.25] * 6 + [1.0], atol=1e-5)
    assert range_normalization(load_profile("droid")).state.kind == "identity"
