"""LeRobot directories: their own JSON decides, both eras, clear errors."""

import contextlib
import json

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lerobot_files import ACTION_FILE, STATE_FILE, edit, stats, write_lerobot
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_torch

from pi05_ros.policy import PolicyError
from pi05_ros.policy.checkpoints.lerobot import (
    derive_roles,
    is_lerobot,
    lerobot_recipe,
    relative_mask,
)


@pytest.mark.parametrize(
    ("mode", "low", "high"),
    [("QUANTILES", "q01", "q99"), ("QUANTILE10", "q10", "q90"), ("MIN_MAX", "min", "max")],
)
def test_norm_map_decides(tmp_path, mode, low, high):
    recipe = lerobot_recipe(write_lerobot(tmp_path, mode=mode))
    ours = stats(6, 1)
    x = np.linspace(-1, 1, 6, dtype=np.float32)
    expected = 2 * (x - ours[low]) / (ours[high] - ours[low]) - 1
    np.testing.assert_allclose(recipe.normalization.state.normalize(x), expected, rtol=1e-6)
    back = stats(6, 2)
    out = recipe.normalization.actions.unnormalize(np.zeros((2, 6), np.float32))
    np.testing.assert_allclose(out[0], (back[low] + back[high]) / 2, rtol=1e-5, atol=1e-6)


def test_mean_std_although_quantiles_are_there(tmp_path):
    recipe = lerobot_recipe(write_lerobot(tmp_path, mode="MEAN_STD"))
    assert recipe.normalization.state.kind == "zscore"
    assert recipe.normalization.state.eps == 1e-8


def test_state_file_is_followed_not_guessed(tmp_path):
    write_lerobot(tmp_path)
    (tmp_path / STATE_FILE).rename(tmp_path / "elsewhere.safetensors")
    edit(
        tmp_path / "policy_preprocessor.json",
        lambda d: d["steps"][2].update(state_file="elsewhere.safetensors"),
    )
    assert lerobot_recipe(tmp_path).normalization.state.kind == "quantile"


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "gone.safetensors"])
def test_state_file_must_lie_in_the_directory(tmp_path, name):
    write_lerobot(tmp_path / "policy")
    save_file({"action.q01": np.zeros(1)}, tmp_path / "x.safetensors")
    edit(
        tmp_path / "policy" / "policy_preprocessor.json",
        lambda d: d["steps"][2].update(state_file=name),
    )
    with pytest.raises(PolicyError, match="is not a file in"):
        lerobot_recipe(tmp_path / "policy")


def test_files_that_are_links_as_in_the_hugging_face_cache(tmp_path):
    folder = write_lerobot(tmp_path / "snapshots" / "r0")
    for number, file in enumerate(sorted(folder.iterdir())):
        blob = tmp_path / f"blob{number}"
        file.rename(blob)
        file.symlink_to(blob)
    recipe = lerobot_recipe(folder)
    assert (recipe.normalization.state.kind, recipe.normalization.actions.kind) == (
        "quantile",
        "quantile",
    )


def test_statistics_in_bfloat16_are_read_as_float32(tmp_path):
    write_lerobot(tmp_path)
    held = {k: torch.from_numpy(v).bfloat16() for k, v in load_file(tmp_path / STATE_FILE).items()}
    save_torch(held, tmp_path / STATE_FILE)
    q01 = lerobot_recipe(tmp_path).normalization.state.stats["q01"]
    assert q01.dtype == np.float32
    assert np.array_equal(q01, held["observation.state.q01"].float().numpy())


def test_no_statistics_mean_identity_and_are_said(tmp_path):
    recipe = lerobot_recipe(write_lerobot(tmp_path, with_stats=False))
    assert recipe.normalization.state.kind == recipe.normalization.actions.kind == "identity"
    assert any("no statistics for observation.state" in a for a in recipe.assumptions)


def test_identity_mode(tmp_path):
    recipe = lerobot_recipe(write_lerobot(tmp_path, mode="IDENTITY"))
    assert recipe.normalization.state.kind == "identity"


def test_old_era_is_the_default_and_says_so(tmp_path):
    recipe = lerobot_recipe(write_lerobot(tmp_path))
    assert (recipe.lerobot_pad, recipe.prompt_state_size) == (-3.0, 32)
    assert any("0.4.4 or earlier" in a for a in recipe.assumptions)


@pytest.mark.parametrize(
    "options",
    [
        {"config": {"use_relative_actions": False}},
        {"config": {"action_feature_names": None}},
        {"relative": [], "names": None},
        {"relative": [], "registry": "delta_actions_processor"},
    ],
)
def test_signs_of_the_new_era(tmp_path, options):
    recipe = lerobot_recipe(write_lerobot(tmp_path, **options))
    assert (recipe.lerobot_pad, recipe.prompt_state_size) == (-1.0, None)
    assert any("0.5 or later" in a for a in recipe.assumptions)


def test_untied_embedding_is_a_sign_of_the_new_era(tmp_path):
    write_lerobot(tmp_path)
    head = "model.paligemma_with_expert.paligemma."
    one = np.zeros((2, 2), np.float32)
    save_file({head + "lm_head.weight": one}, tmp_path / "model.safetensors")
    assert lerobot_recipe(tmp_path).lerobot_pad == -3.0
    both = {
        head + "lm_head.weight": one,
        head + "model.language_model.embed_tokens.weight": one,
    }
    save_file(both, tmp_path / "model.safetensors")
    assert lerobot_recipe(tmp_path).lerobot_pad == -1.0


def test_era_can_be_set(tmp_path):
    write_lerobot(tmp_path)
    assert lerobot_recipe(tmp_path, era="0.5").lerobot_pad == -1.0
    assert lerobot_recipe(tmp_path, era="0.4").prompt_state_size == 32
    with pytest.raises(PolicyError, match=r"accepted: auto, 0\.4, 0\.5"):
        lerobot_recipe(tmp_path, era="0.6")


@pytest.mark.parametrize(
    ("exclude", "names", "mask"),
    [
        ([], ["a", "gripper.pos"], (True, True)),
        (["gripper"], ["a", "Gripper.pos"], (True, False)),
        (["gripper"], None, (True, True)),
        (["GRIP"], ["a"], (True, True)),
        (["a"], ["a", "b", "c"], (False, True)),
        ([""], ["a", "b"], (True, True)),
    ],
)
def test_relative_mask(exclude, names, mask):
    assert relative_mask(exclude, names, 2) == mask


def test_relative_actions_and_names(tmp_path):
    names = [f"joint{i}.pos" for i in range(5)] + ["gripper.pos"]
    write_lerobot(tmp_path, relative=["gripper"], names=names)
    robot = lerobot_recipe(tmp_path).profile
    assert robot.delta_mask == (True,) * 5 + (False,)
    assert robot.action_names == robot.state_names == tuple(names)
    edit(
        tmp_path / "policy_postprocessor.json",
        lambda d: d["steps"][1]["config"].update(enabled=False),
    )
    assert lerobot_recipe(tmp_path).profile.delta_mask == ()


def test_absolute_without_relative_is_an_error(tmp_path):
    write_lerobot(tmp_path, relative=[])
    edit(tmp_path / "policy_preprocessor.json", lambda d: d["steps"].pop(2))
    with pytest.raises(PolicyError, match="makes actions absolute"):
        lerobot_recipe(tmp_path)


@pytest.mark.parametrize(
    ("features", "roles"),
    [
        (["o.i.top", "o.i.wrist"], ["base", "wrist"]),
        (["o.i.wrist", "o.i.top"], ["wrist", "base"]),
        (["o.i.left_wrist", "o.i.right_wrist", "o.i.high"], ["wrist", "wrist_2", "base"]),
        (["o.i.image", "o.i.image2"], ["base", "wrist"]),
        (["o.i.front", "o.i.side", "o.i.gripper"], ["base", "wrist_2", "wrist"]),
        (["o.i.a", "o.i.b", "o.i.c", "o.i.d"], ["base", "wrist", "wrist_2", "d"]),
    ],
)
def test_roles_of_features(features, roles):
    assert derive_roles(features) == dict(zip(features, roles, strict=True))


def test_camera_order_is_that_of_the_config_and_empty_ones_are_left_out(tmp_path):
    cameras = (
        "observation.images.wrist", "observation.images.empty_camera_0", "observation.images.top",
    )  # fmt: skip
    robot = lerobot_recipe(write_lerobot(tmp_path, cameras=cameras)).profile
    assert robot.camera_roles == ("wrist", "base")
    assert robot.required_roles == ("base",)


def test_camera_roles_can_be_set_through_the_rename_map(tmp_path):
    write_lerobot(tmp_path, rename={"observation.images.cam0": "observation.images.top"})
    roles = {"wrist": "observation.images.cam0", "base": "observation.images.wrist_left"}
    robot = lerobot_recipe(tmp_path, camera_roles=roles).profile
    assert [(c.role, c.slot) for c in robot.cameras] == [
        ("wrist", "observation.images.top"),
        ("base", "observation.images.wrist_left"),
    ]
    with pytest.raises(PolicyError, match=r"'nope'; accepted: observation\.images\.top"):
        lerobot_recipe(tmp_path, camera_roles={"base": "nope"})
    write_lerobot(tmp_path, rename={"observation.images.cam0": ["observation.images.top"]})
    with pytest.raises(PolicyError, match="rename_map"):
        lerobot_recipe(tmp_path, camera_roles=roles)


def test_a_robot_profile_names_what_the_files_do_not(tmp_path):
    write_lerobot(tmp_path, states=8, actions=7)
    robot = lerobot_recipe(tmp_path, robot="libero").profile
    assert robot.action_names[0] == "eef_dx"
    assert (robot.horizon, robot.control_hz) == (10, 20)
    assert robot.discrete_state  # LeRobot always writes the state
    with pytest.raises(PolicyError, match="8 state values and 8 actions, the checkpoint 8 and 7"):
        lerobot_recipe(tmp_path, robot="droid")


def test_rate(tmp_path):
    write_lerobot(tmp_path)
    assert lerobot_recipe(tmp_path).profile.control_hz == 30
    assert lerobot_recipe(tmp_path, control_hz=12.5).profile.step_s == pytest.approx(0.08)
    for zero in (0, 0.0):
        with pytest.raises(PolicyError, match="control_hz is 0"):
            lerobot_recipe(tmp_path, control_hz=zero)


def test_prompt_length(tmp_path):
    write_lerobot(tmp_path)
    assert lerobot_recipe(tmp_path).max_prompt_tokens == 180


def _set(name, **values):
    return name, lambda d: d.update(values)


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        (*_set("config.json", type="act"), "'act' policy; accepted: 'pi05'"),
        (*_set("config.json", n_obs_steps=3), "n_obs_steps is 3; accepted: 1"),
        (*_set("config.json", use_proprioceptive_memory=True), "memory"),
        (*_set("config.json", use_visual_memory=True), "memory"),
        (*_set("config.json", min_period=0.001), "min_period is 0.001; accepted: 0.004"),
        (*_set("config.json", max_period=8.0), "max_period is 8.0; accepted: 4"),
        (*_set("config.json", input_features={}), "no input_features"),
        (*_set("config.json", output_features={"action": {"shape": []}}), "'action' with a shape"),
        (*_set("policy_preprocessor.json", steps=[{"registry_name": "magic"}]), "'magic'"),
        (*_set("policy_preprocessor.json", steps=3), "no list of steps"),
        (
            "policy_preprocessor.json",
            lambda d: d["steps"][2]["config"].update(norm_map={"STATE": "LOG"}),
            "'LOG'; accepted: IDENTITY",
        ),
    ],
)
def test_what_is_not_supported_is_named(tmp_path, file, change, words):
    write_lerobot(tmp_path)
    edit(tmp_path / file, change)
    with pytest.raises(PolicyError, match=words) as error:
        lerobot_recipe(tmp_path)
    assert "\n" not in str(error.value)


def test_statistics_of_another_size(tmp_path):
    write_lerobot(tmp_path)
    save_file({f"action.{k}": v for k, v in stats(4, 2).items()}, tmp_path / ACTION_FILE)
    with pytest.raises(PolicyError, match=r"cover 4 values; config\.json says 6"):
        lerobot_recipe(tmp_path)


@pytest.mark.parametrize("content", [b"", b"junk" * 10, b"\xff" * 64])
def test_broken_statistics(tmp_path, content):
    write_lerobot(tmp_path)
    (tmp_path / STATE_FILE).write_bytes(content)
    with pytest.raises(PolicyError, match="not a readable safetensors file"):
        lerobot_recipe(tmp_path)


def test_telling_lerobot_from_openpi(tmp_path):
    assert is_lerobot(write_lerobot(tmp_path / "a"))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "config.json").write_text('{"action_dim": 32}')
    assert not is_lerobot(tmp_path / "b")


JSON_FILES = ("config.json", "policy_preprocessor.json", "policy_postprocessor.json")
junk = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 2**70) | st.floats() | st.text(max_size=5),
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children)
    ),
    max_leaves=4,
)


def _places(data, path=()):
    items = data.items() if isinstance(data, dict) else enumerate(data)
    for key, value in items:
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from _places(value, (*path, key))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_files_with_any_value_replaced_end_in_our_error_or_a_recipe(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("fuzz")
    write_lerobot(folder, relative=["gripper"], names=[f"j{i}" for i in range(5)] + ["gripper"])
    path = folder / data.draw(st.sampled_from(JSON_FILES))
    content = json.loads(path.read_text())
    place = data.draw(st.sampled_from(list(_places(content))))
    at = content
    for key in place[:-1]:
        at = at[key]
    at[place[-1]] = data.draw(junk)
    path.write_text(json.dumps(content))
    with contextlib.suppress(PolicyError):
        assert lerobot_recipe(folder).profile.horizon >= 1


def _picture_statistics(folder):
    """ImageNet-like statistics for one camera, in the file that LeRobot writes them to."""
    state = {f"observation.state.{k}": v for k, v in stats(6, 1).items()}
    for name, value in (("mean", 0.5), ("std", 0.25)):
        state[f"observation.images.top.{name}"] = np.full((3, 1, 1), value, np.float32)
    save_file(state, folder / STATE_FILE)


def _visual_mode(mode):
    return lambda d: d["steps"][2]["config"]["norm_map"].update(VISUAL=mode)


def test_normalized_pictures_are_an_error_and_not_ignored(tmp_path):
    write_lerobot(tmp_path)
    _picture_statistics(tmp_path)
    lerobot_recipe(tmp_path)  # IDENTITY: the statistics are there and unused
    edit(tmp_path / "policy_preprocessor.json", _visual_mode("MEAN_STD"))
    with pytest.raises(PolicyError, match=r"normalizes 'observation.images.top' by 'MEAN_STD'"):
        lerobot_recipe(tmp_path)


def test_pictures_without_statistics_pass_whatever_the_map_says(tmp_path):
    write_lerobot(tmp_path)
    edit(tmp_path / "policy_preprocessor.json", _visual_mode("MEAN_STD"))
    assert lerobot_recipe(tmp_path).normalization.state.kind == "quantile"


def test_state_that_the_normalizer_does_not_list_passes_unchanged(tmp_path):
    write_lerobot(tmp_path)
    edit(
        tmp_path / "policy_preprocessor.json",
        lambda d: d["steps"][2]["config"]["features"].pop("observation.state"),
    )
    recipe = lerobot_recipe(tmp_path)
    assert recipe.normalization.state.kind == "identity"
    assert recipe.normalization.actions.kind == "quantile"


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("tokenizer", True),
        ("google/paligemma-3b-pt-224", False),
        ("../outside", False),
        ("\0", False),
        (7, False),
    ],
)
def test_tokenizer_saved_with_the_checkpoint(tmp_path, name, found):
    folder = write_lerobot(tmp_path / "policy")
    for place in (folder / "tokenizer", tmp_path / "outside"):
        place.mkdir()
        (place / "tokenizer.json").write_text("{}")
    edit(
        folder / "policy_preprocessor.json",
        lambda d: d["steps"][4]["config"].update(tokenizer_name=name),
    )
    expected = str((folder / "tokenizer").resolve()) if found else None
    assert lerobot_recipe(folder).tokenizer == expected
