"""LeRobot directories: their own JSON decides, both eras, clear errors."""

import contextlib
import json

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lerobot_files import ACTION_FILE, STATE_FILE, edit, stats, write_lerobot
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_torch

from pi05_ros.policy import PolicyError
from pi05_ros.policy.checkpoints.lerobot import is_lerobot, lerobot_recipe
from pi05_ros.policy.checkpoints.lerobot_actions import relative_mask
from pi05_ros.policy.checkpoints.lerobot_cameras import derive_roles
from pi05_ros.policy.transforms.transforms import state_to_model


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


def test_statistics_that_are_not_there_are_an_error(tmp_path):
    write_lerobot(tmp_path, with_stats=False)
    with pytest.raises(PolicyError, match=r"no statistics of 'observation.state'.*there are none"):
        lerobot_recipe(tmp_path)
    assert lerobot_recipe(write_lerobot(tmp_path, mode="IDENTITY", with_stats=False))


@pytest.mark.parametrize(
    ("file", "feature"), [(STATE_FILE, "observation.state"), (ACTION_FILE, "action")]
)
def test_statistics_of_other_keys_are_an_error_that_lists_them(tmp_path, file, feature):
    """Base checkpoints carry those of their training data sets."""
    write_lerobot(tmp_path)
    held = load_file(tmp_path / file)
    save_file({f"so100.buffer.{k}": v for k, v in held.items()}, tmp_path / file)
    message = f"no statistics of {feature!r}.*it has those of so100.buffer.{feature}"
    with pytest.raises(PolicyError, match=message) as error:
        lerobot_recipe(tmp_path)
    assert "fine-tune it" in str(error.value)


@pytest.mark.parametrize("name", ["policy_preprocessor.json", "policy_postprocessor.json"])
def test_a_partial_copy_is_refused(tmp_path, name):
    write_lerobot(tmp_path, relative=[])
    (tmp_path / name).unlink()
    with pytest.raises(PolicyError, match=f"{name} is missing.*copy policy_preprocessor.json"):
        lerobot_recipe(tmp_path)


@pytest.mark.parametrize(
    ("file", "step", "kind"),
    [("policy_preprocessor.json", 2, "STATE"), ("policy_postprocessor.json", 0, "ACTION")],
)
def test_a_step_that_is_not_there_is_refused_unless_it_has_nothing_to_do(
    tmp_path, file, step, kind
):
    write_lerobot(tmp_path)
    edit(tmp_path / file, lambda d: d["steps"].pop(step))
    with pytest.raises(PolicyError, match=f"normalizer_processor step.*IDENTITY for {kind}"):
        lerobot_recipe(tmp_path)
    mapping = {"normalization_mapping": {kind: "IDENTITY"}}
    edit(tmp_path / "config.json", lambda d: d.update(mapping))
    normalization = lerobot_recipe(tmp_path).normalization
    kinds = {"STATE": normalization.state.kind, "ACTION": normalization.actions.kind}
    assert kinds[kind] == "identity"


@pytest.mark.parametrize(
    ("stat", "value", "words"),
    [
        ("q01", 9.0, r"the statistic q01 is above q99 at value 2 \(9 > "),
        ("q99", -9.0, "the statistic q01 is above q99 at value 2"),
        ("q99", 3e38, "span more than can be computed with at value 2"),
        ("q99", np.nan, "the statistic q99 holds NaN"),
    ],
)
def test_statistics_that_would_turn_motion_round_are_named(tmp_path, stat, value, words):
    write_lerobot(tmp_path)
    held = load_file(tmp_path / ACTION_FILE)
    held[f"action.{stat}"][2] = value
    save_file(held, tmp_path / ACTION_FILE)
    with pytest.raises(PolicyError, match=f"{ACTION_FILE}: action: .*{words}"):
        lerobot_recipe(tmp_path)


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


def _enable(tmp_path, file, step, value):
    """Switch a relative or absolute step on, off, or (None) take it out."""
    change = lambda d: d["steps"][step]["config"].update(enabled=value)  # noqa: E731
    edit(tmp_path / file, change if value is not None else lambda d: d["steps"].pop(step))


@pytest.mark.parametrize("value", [False, None])
def test_one_of_the_two_steps_alone_is_an_error(tmp_path, value):
    write_lerobot(tmp_path, relative=[])
    _enable(tmp_path, "policy_preprocessor.json", 2, value)
    with pytest.raises(PolicyError, match="makes actions absolute"):
        lerobot_recipe(tmp_path)
    write_lerobot(tmp_path, relative=[])
    _enable(tmp_path, "policy_postprocessor.json", 1, value)
    with pytest.raises(PolicyError, match="differences would be executed as positions"):
        lerobot_recipe(tmp_path)


@pytest.mark.parametrize("value", [False, None])
def test_use_relative_actions_against_the_steps(tmp_path, value):
    config = {"use_relative_actions": True}
    write_lerobot(tmp_path, relative=[], config=config)
    assert lerobot_recipe(tmp_path).doubts == ()
    _enable(tmp_path, "policy_preprocessor.json", 2, value)
    _enable(tmp_path, "policy_postprocessor.json", 1, value)
    with pytest.raises(PolicyError, match=r"config\.json says use_relative"):
        lerobot_recipe(tmp_path)
    write_lerobot(tmp_path, relative=[], config={"use_relative_actions": False})
    recipe = lerobot_recipe(tmp_path)
    assert recipe.profile.delta_mask == (True,) * 6
    assert any("use_relative_actions false" in d for d in recipe.doubts)


def test_what_is_excluded_is_told_by_the_step_s_own_names(tmp_path):
    """As in LeRobot; those of config.json are labels."""
    names = [*"abcde", "gripper"]
    write_lerobot(
        tmp_path, relative=["gripper"], names=None, config={"action_feature_names": names}
    )
    recipe = lerobot_recipe(tmp_path)
    assert recipe.profile.delta_mask == (True,) * 6
    assert recipe.profile.action_names == tuple(names)
    assert any("the step has no action_names" in d for d in recipe.doubts)


NESTED = [["r1", "r2", "r3"], ["l1", "l2", "l3"]]


@pytest.mark.parametrize("names", [NESTED, {"right": NESTED[0], "left": NESTED[1]}])
def test_nested_names_are_labels(tmp_path, names):
    write_lerobot(tmp_path, config={"action_feature_names": names})
    assert lerobot_recipe(tmp_path).profile.action_names == ("r1", "r2", "r3", "l1", "l2", "l3")
    write_lerobot(tmp_path, relative=[], names=names)
    assert lerobot_recipe(tmp_path).profile.delta_mask == (True,) * 6
    write_lerobot(tmp_path, relative=["r3"], names=names)
    with pytest.raises(PolicyError, match="what exclude_joints r3 leaves out cannot be told"):
        lerobot_recipe(tmp_path)


@pytest.mark.parametrize("names", [["a"], ["a"] * 6, [1, 2, 3, 4, 5, 6], "abcdef", 7, [[[[[1]]]]]])
def test_names_that_cannot_be_used_are_numbers_and_said(tmp_path, names):
    write_lerobot(tmp_path, config={"action_feature_names": names})
    recipe = lerobot_recipe(tmp_path)
    assert recipe.profile.action_names[0] == "action_0"
    assert any("not one name for each of the 6 actions" in a for a in recipe.assumptions)


# a robot profile beside the checkpoint's names ------------------------------------------------


def profile_of(path, states, actions=None, unit="radian"):
    """A profile file with these columns; returns its path."""
    columns = [{"name": n, "unit": unit} for n in states]
    path.write_text(
        yaml.safe_dump(
            {
                "control_hz": 30,
                "cameras": [{"role": "base", "slot": "base_0_rgb", "required": True}],
                "state": columns,
                "actions": [
                    {"name": n, "meaning": "absolute", "unit": unit} for n in actions or states
                ],
            }
        )
    )
    return path


ARMS = ("right_j1", "right_j2", "right_gripper", "left_j1", "left_j2", "left_gripper")
TURNED = (*ARMS[3:], *ARMS[:3])


@pytest.mark.parametrize("ending", ["", ".pos"])
@pytest.mark.parametrize("relative", [None, ["gripper"]])
def test_a_profile_in_another_order_is_put_into_the_checkpoint_s(tmp_path, relative, ending):
    names = [name + ending for name in ARMS]
    robot = profile_of(tmp_path / "arms.yaml", TURNED)
    data = yaml.safe_load(robot.read_text())
    data["actions"][0]["unit"] = data["state"][0]["unit"] = "degree"  # left_j1
    robot.write_text(yaml.safe_dump(data))
    config = {"action_feature_names": names}
    write_lerobot(tmp_path / "c", relative=relative, names=names, config=config)
    recipe = lerobot_recipe(tmp_path / "c", robot=robot)
    assert recipe.profile.action_names == recipe.profile.state_names == ARMS
    assert recipe.profile.action_units[3].name == "DEGREE"
    assert recipe.profile.delta_mask == (() if relative is None else (True, True, False) * 2)
    assert any("column 0 is right_j1" in a and "has left_j1" in a for a in recipe.assumptions)


def test_a_permutation_whose_states_cannot_follow_is_refused(tmp_path):
    states = [f"s{i}" for i in range(6)]
    robot = profile_of(tmp_path / "arms.yaml", states, TURNED)
    write_lerobot(tmp_path / "c", relative=[], names=list(ARMS))
    with pytest.raises(PolicyError, match=r"action 0 of the checkpoint is 'right_j1'.*'left_j1'"):
        lerobot_recipe(tmp_path / "c", robot=robot)


def test_a_name_elsewhere_among_others_is_refused(tmp_path):
    mine = ["a", "b", "right_j1", "c", "d", "e"]
    robot = profile_of(tmp_path / "arms.yaml", mine)
    write_lerobot(tmp_path / "c", relative=[], names=list(ARMS))
    with pytest.raises(PolicyError, match="write the profile in the checkpoint's order"):
        lerobot_recipe(tmp_path / "c", robot=robot)


def test_other_names_are_said_in_pairs_and_doubted_where_sides_differ(tmp_path):
    mine = ["left_a", "left_b", "left_c", "left_d", "left_e", "left_gripper"]
    robot = profile_of(tmp_path / "arms.yaml", mine)
    write_lerobot(tmp_path / "c", relative=[], names=list(ARMS))
    with pytest.raises(PolicyError, match="write the profile"):
        lerobot_recipe(tmp_path / "c", robot=profile_of(tmp_path / "b.yaml", [*ARMS[1:], "x"]))
    recipe = lerobot_recipe(tmp_path / "c", robot=robot)
    assert any("right_j1 is left_a" in a and "left_j1 is left_d" in a for a in recipe.assumptions)
    doubted = [d for d in recipe.doubts if "is the order right?" in d]
    assert [d.split("'")[1] for d in doubted] == ["right_j1", "right_j2", "right_gripper"]


def test_a_checkpoint_without_names_is_taken_in_the_profile_s_order_and_says_so(tmp_path):
    robot = profile_of(tmp_path / "arm.yaml", list("abcdef"))
    recipe = lerobot_recipe(write_lerobot(tmp_path / "c"), robot=robot)
    assert any("the files have no action names" in a for a in recipe.assumptions)


def test_statistics_in_degrees_under_a_profile_in_radians(tmp_path):
    """The profile is wrong by 57: named at load with the columns."""
    write_lerobot(tmp_path / "c")
    for file, key in ((STATE_FILE, "observation.state"), (ACTION_FILE, "action")):
        held = load_file(tmp_path / "c" / file)
        for stat, value in (("q01", -90), ("q99", 90)):
            held[f"{key}.{stat}"][:] = value
        save_file(held, tmp_path / "c" / file)
    robot = profile_of(tmp_path / "arm.yaml", list("abcdef"))
    doubts = lerobot_recipe(tmp_path / "c", robot=robot).doubts
    assert any("state 'a' reach from -90 to 90 radian" in d and "degrees?" in d for d in doubts)
    assert any("action 'a'" in d for d in doubts)
    degrees = profile_of(tmp_path / "arm.yaml", list("abcdef"), unit="degree")
    assert lerobot_recipe(tmp_path / "c", robot=degrees).doubts == ()


def test_an_so101_in_degrees(tmp_path):
    names = ["shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper"]
    write_lerobot(tmp_path, config={"action_feature_names": [n + ".pos" for n in names]})
    for file, key in ((STATE_FILE, "observation.state"), (ACTION_FILE, "action")):
        held = load_file(tmp_path / file)
        for stat, value in (("q01", -80), ("q99", 80)):
            held[f"{key}.{stat}"][:] = value
        held[f"{key}.q01"][5] = 0
        save_file(held, tmp_path / file)
    recipe = lerobot_recipe(tmp_path, robot="so101")
    assert recipe.doubts == ()
    model = state_to_model(recipe.profile, np.array([0.5, 0, 0, 0, 0, 1.74533]))
    assert model[0] == pytest.approx(np.degrees(0.5))
    assert model[5] == pytest.approx(100)
    with pytest.raises(PolicyError, match="6 state values and 6 actions"):
        lerobot_recipe(write_lerobot(tmp_path, states=7), robot="so101")


# flow steps, prompts --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "steps"),
    [
        ({}, None),
        ({"num_inference_steps": 4}, 4),
        ({"num_steps": 5}, 5),
        ({"num_inference_steps": 4, "num_steps": 4}, 4),
        ({"num_inference_steps": None}, None),
    ],
)
def test_flow_steps_of_the_files(tmp_path, config, steps):
    assert lerobot_recipe(write_lerobot(tmp_path, config=config)).denoise_steps == steps


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"num_inference_steps": 0}, "num_inference_steps is 0; accepted: a whole number from 1"),
        ({"num_steps": 2.5}, "num_steps is 2.5"),
        ({"num_inference_steps": 4, "num_steps": 5}, "contradicts itself about the flow steps"),
    ],
)
def test_flow_steps_that_are_none(tmp_path, config, words):
    with pytest.raises(PolicyError, match=words):
        lerobot_recipe(write_lerobot(tmp_path, config=config))


def test_state_padding_is_that_of_training_and_said(tmp_path):
    recipe = lerobot_recipe(write_lerobot(tmp_path, config={"max_state_dim": 14}))
    assert recipe.prompt_state_size == 14
    assert any("padded to max_state_dim 14 in the prompt" in a for a in recipe.assumptions)
    edit(
        tmp_path / "policy_preprocessor.json",
        lambda d: d["steps"][3]["config"].update(max_state_dim=20),
    )
    assert lerobot_recipe(tmp_path).prompt_state_size == 20
    assert lerobot_recipe(tmp_path, era="0.5").prompt_state_size is None


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


def test_roles_are_those_of_the_data_set_where_it_is_renamed(tmp_path):
    images = "observation.images."
    write_lerobot(
        tmp_path,
        cameras=(images + "base_0_rgb", images + "left_wrist_0_rgb"),
        rename={
            images + "wrist": images + "base_0_rgb",
            images + "top": images + "left_wrist_0_rgb",
        },
    )
    recipe = lerobot_recipe(tmp_path)
    cameras = [(c.role, c.source, c.slot) for c in recipe.profile.cameras]
    assert cameras == [
        ("wrist", images + "wrist", images + "base_0_rgb"),
        ("base", images + "top", images + "left_wrist_0_rgb"),
    ]
    said = [a for a in recipe.assumptions if "rename_map" in a]
    assert len(said) == 2
    assert "camera 'wrist' is observation.images.wrist" in said[0]
    roles = {"base": images + "wrist", "wrist": images + "left_wrist_0_rgb"}
    cameras = lerobot_recipe(tmp_path, camera_roles=roles).profile.cameras
    assert [(c.role, c.slot) for c in cameras] == [
        ("base", images + "base_0_rgb"),
        ("wrist", images + "left_wrist_0_rgb"),
    ]


def test_two_sources_of_one_feature_are_said(tmp_path):
    images = "observation.images."
    rename = {images + "hand": images + "top", images + "front": images + "top"}
    recipe = lerobot_recipe(write_lerobot(tmp_path, rename=rename))
    assert recipe.profile.cameras[0].source == images + "hand"
    assert any("gives observation.images.top two sources" in a for a in recipe.assumptions)


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


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("policy_preprocessor.json", lambda steps: steps.insert(4, steps.pop(2))),
        ("policy_preprocessor.json", lambda steps: steps.append(steps[2])),
        ("policy_preprocessor.json", lambda steps: steps.append(steps.pop(3))),
        ("policy_postprocessor.json", lambda steps: steps.reverse()),
    ],
)
def test_steps_in_another_order_are_refused(tmp_path, file, change):
    """A normalizer behind the prompt's step, for one, means raw states in the prompt."""
    write_lerobot(tmp_path, relative=[])
    lerobot_recipe(tmp_path)
    edit(tmp_path / file, lambda d: change(d["steps"]))
    with pytest.raises(PolicyError, match="another order or number of them means other values"):
        lerobot_recipe(tmp_path)


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


def test_copies_without_the_real_files_are_named(tmp_path):
    """Git LFS pointers, and links into a cache that was cleaned."""
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    for name in (STATE_FILE, ACTION_FILE, *JSON_FILES):
        write_lerobot(tmp_path)
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(pointer)
        with pytest.raises(PolicyError, match=f"{name} is a Git LFS pointer"):
            lerobot_recipe(tmp_path)
        (tmp_path / name).unlink()
        (tmp_path / name).symlink_to("../../blobs/gone")
        with pytest.raises(PolicyError, match=f"{name} is a link to ../../blobs/gone"):
            lerobot_recipe(tmp_path)
        (tmp_path / name).unlink()
        (tmp_path / name).write_bytes(content)


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
    assert any("observation.state passes unchanged" in a for a in recipe.assumptions)


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
