"""Policy end to end on tiny weights: openpi, LeRobot and random checkpoints."""

import functools
import json
import logging
import runpy
import shutil
import threading
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from lerobot_files import stats, write_lerobot

from pi05_ros.backends import BackendError
from pi05_ros.cli.main import main
from pi05_ros.model import CheckpointError, Pi05, Pi05Config, save_openpi
from pi05_ros.model.checkpoint import file_hash
from pi05_ros.policy import Observation, Policy, PolicyError, RobotProfileError
from pi05_ros.policy.checkpoints.loading import read_recipe, with_tokenizer
from pi05_ros.policy.prefilled import seeded_noise
from pi05_ros.policy.prompt.tokenizer import ByteTokenizer
from pi05_ros.policy.transforms.aloha import aloha_actions_from_pi, aloha_state_to_pi
from pi05_ros.policy.transforms.images import lerobot_image
from pi05_ros.resources import config_dir

RNG = np.random.default_rng(0)
PICTURES = [RNG.integers(0, 256, (48, 64, 3), dtype=np.uint8) for _ in range(3)]


def observe(n=7, roles=("base", "wrist"), prompt=None, state=None):
    images = dict(zip(roles, PICTURES, strict=False))
    return Observation(images, np.linspace(-0.5, 0.6, n) if state is None else state, prompt)


@pytest.fixture(scope="module")
def policy():
    return Policy.load("random:tiny", threads=1)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    save_openpi(Pi05.random(Pi05Config.preset("tiny"), 0), folder / "model.safetensors")
    return folder / "model.safetensors"


def openpi_checkpoint(folder, weights, asset, states, actions, config=None):
    folder.mkdir(exist_ok=True)
    (folder / "model.safetensors").symlink_to(weights)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    assets = folder / "assets" / asset
    assets.mkdir(parents=True)
    rng = np.random.default_rng(3)

    def vectors(n):
        low = rng.uniform(-1.5, -0.5, n)
        return {"q01": low.tolist(), "q99": (low + rng.uniform(1, 3, n)).tolist()}

    data = {"state": vectors(states), "actions": vectors(actions)}
    (assets / "norm_stats.json").write_text(json.dumps({"norm_stats": data}))
    return data


# random weights ------------------------------------------------------------------------------


def test_chunk_of_random_weights(policy):
    chunk = policy.infer(observe(), seed=1)
    assert chunk.actions.shape == (10, 7)
    assert chunk.actions.dtype == np.float32
    assert chunk.normalized.shape == (10, 32)
    assert np.isfinite(chunk.actions).all()
    assert chunk.names == policy.robot.action_names
    assert len(chunk.meanings) == len(chunk.units) == 7
    assert chunk.dt == pytest.approx(0.05)
    assert (chunk.seed, chunk.denoise_steps, chunk.prompt) == (1, 10, "move the arm")
    t = chunk.timings
    parts = (t.preprocess_ms, t.vision_ms, t.prefill_ms, t.denoise_ms, t.postprocess_ms)
    assert all(v > 0 for v in parts)
    assert t.model_ms >= t.vision_ms + t.prefill_ms + t.denoise_ms


def test_info_says_everything(policy):
    info = policy.info
    assert info.random_weights
    assert (info.checkpoint, info.checkpoint_hash) == ("random:tiny", "random:tiny:0")
    assert (info.robot, info.tokenizer, info.denoise_steps) == ("sim_arm", "bytes", 10)
    assert (info.horizon, info.step_s) == (10, 0.05)
    assert info.camera_roles == ("base", "wrist")
    assert info.state_names == info.action_names
    assert info.precision.vision in ("fp32", "bf16")
    assert policy.robot.horizon == 10
    assert policy.robot.required_roles == ("base",)


def test_equal_observation_and_seed_give_equal_bits(policy):
    a = policy.infer(observe(), seed=5)
    policy.infer(observe(state=np.zeros(7)), seed=6)
    b = policy.infer(observe(), seed=5)
    np.testing.assert_array_equal(a.actions, b.actions)
    assert not np.array_equal(a.actions, policy.infer(observe(), seed=6).actions)


def test_running_seed():
    one = Policy.load("random:tiny", seed=7)
    seeds = [one.infer(observe(), denoise_steps=1).seed for _ in range(3)]
    assert seeds == [7, 8, 9]
    one.warm_up()
    assert one.infer(observe(), denoise_steps=1).seed == 10
    one.reset()
    assert one.infer(observe(), denoise_steps=1).seed == 7
    np.testing.assert_array_equal(
        one.infer(observe(), seed=8).actions,
        Policy.load("random:tiny").infer(observe(), seed=8).actions,
    )


def test_the_largest_seeds():
    last = Policy.load("random:tiny", seed=2**63 - 1)
    seeds = [last.infer(observe(), denoise_steps=1).seed for _ in range(2)]
    assert seeds == [2**63 - 1, 0]
    with pytest.raises(PolicyError, match=r"0 to 2\^63 - 1"):
        last.infer(observe(), seed=2**63)
    with pytest.raises(PolicyError, match="18 digits"):
        Policy.load("random:tiny:" + "9" * 30)


def test_other_weight_seeds_are_other_weights(policy):
    other = Policy.load("random:tiny:4")
    assert other.info.checkpoint_hash == "random:tiny:4"
    assert not np.array_equal(
        other.infer(observe(), seed=1).actions, policy.infer(observe(), seed=1).actions
    )


def test_horizon_keeps_the_first_steps(policy):
    short = Policy.load("random:tiny", horizon=4)
    chunk = short.infer(observe(), seed=2)
    assert short.info.horizon == chunk.horizon == 4
    np.testing.assert_array_equal(chunk.actions, policy.infer(observe(), seed=2).actions[:4])
    assert chunk.normalized.shape == (4, 32)


def test_denoise_steps_change_the_answer(policy):
    a, b = (policy.infer(observe(), seed=1, denoise_steps=n) for n in (1, 3))
    assert (a.denoise_steps, b.denoise_steps) == (1, 3)
    assert not np.array_equal(a.actions, b.actions)


def test_delta_is_added_to_the_state_of_the_same_observation(policy):
    state = np.array([1.0, -1.0, 0.5, 0, 0, 0.2, 0.7])
    chunk = policy.infer(observe(state=state), seed=3)
    delta = policy.recipe.normalization.actions.unnormalize(chunk.normalized)[:, :7]
    np.testing.assert_allclose(chunk.actions[:, :6], delta[:, :6] + state[:6], atol=1e-6)
    np.testing.assert_allclose(chunk.actions[:, 6], delta[:, 6], atol=1e-6)


def test_prompt_precedence():
    one = Policy.load("random:tiny", prompt="from load")
    assert one.infer(observe(), denoise_steps=1).prompt == "from load"
    one.set_prompt("from_setter")
    assert one.infer(observe(), denoise_steps=1).prompt == "from setter"
    assert one.infer(observe(prompt="own"), denoise_steps=1).prompt == "own"
    one.set_prompt(" ")
    assert one.infer(observe(), denoise_steps=1).prompt == "move the arm"


def test_prompt_that_is_not_a_text(policy):
    for act in (policy.set_prompt, lambda prompt: policy.infer(observe(prompt=prompt))):
        with pytest.raises(PolicyError, match="prompt is int; accepted: a text"):
            act(3)


def test_prompt_of_half_a_surrogate_pair(policy):
    """What `os.fsdecode` makes of an argument that is no UTF-8; SentencePiece fails on it."""
    with pytest.raises(PolicyError, match=r"prompt 'pick\\udcff' is not Unicode text"):
        policy.set_prompt("pick\udcff")
    with pytest.raises(PolicyError, match="not Unicode text"):
        policy.infer(observe(prompt="\ud800"))


def test_empty_checkpoint_is_not_the_current_folder():
    with pytest.raises(PolicyError, match="checkpoint is empty"):
        Policy.load("", robot="sim_arm")


def test_names_that_are_too_long_for_a_file(tmp_path, weights):
    name = "n" * 300
    with pytest.raises(PolicyError, match=f"checkpoint {name} does not exist"):
        Policy.load(name)
    with pytest.raises(RobotProfileError, match="is not known"):
        Policy.load("random:tiny", robot=name)
    with pytest.raises(RobotProfileError, match="cannot be read: File name too long"):
        Policy.load("random:tiny", robot=name + ".yaml")
    with pytest.raises(PolicyError, match=f"tokenizer {name} cannot be read: File name"):
        Policy.load("random:tiny", tokenizer=name)
    openpi_checkpoint(tmp_path / "c", weights, "droid", 8, 8)
    robot = tmp_path / "mine.yaml"
    text = (config_dir() / "robots" / "droid.yaml").read_text()
    robot.write_text(text.replace("asset_id: droid", f"asset_id: {name}"))
    said = read_recipe(tmp_path / "c", robot).doubts
    assert any(name in sentence for sentence in said)


def test_no_prompt_anywhere():
    droid = Policy.load("random:tiny", robot="droid")
    with pytest.raises(PolicyError, match=r"no prompt: .*'droid' has no default"):
        droid.infer(observe(8))


def test_prompt_and_state_matter(policy):
    base = policy.infer(observe(), seed=1).normalized
    assert not np.array_equal(policy.infer(observe(prompt="other"), seed=1).normalized, base)
    assert not np.array_equal(policy.infer(observe(state=np.zeros(7)), seed=1).normalized, base)


def test_optional_camera_is_masked(policy):
    with_wrist = policy.infer(observe(), seed=1)
    without = policy.infer(observe(roles=("base",)), seed=1)
    assert not np.array_equal(with_wrist.normalized, without.normalized)
    none = policy.infer(Observation({"base": PICTURES[0], "wrist": None}, observe().state), seed=1)
    np.testing.assert_array_equal(none.actions, without.actions)


def test_picture_layouts_are_the_same_to_the_model(policy):
    image = PICTURES[0]
    a = policy.infer(Observation({"base": image}, observe().state), seed=1)
    b = policy.infer(Observation({"base": image.transpose(2, 0, 1)}, observe().state), seed=1)
    np.testing.assert_array_equal(a.actions, b.actions)
    read_only = image.copy()
    read_only.flags.writeable = False
    c = policy.infer(Observation({"base": read_only}, observe().state), seed=1)
    np.testing.assert_array_equal(a.actions, c.actions)


@pytest.mark.parametrize(
    ("observation", "words"),
    [
        (observe(6), r"state is float64 \[6\]; accepted: 7 numbers \(joint1, joint2"),
        (observe(state=np.zeros((1, 7))), r"\[1, 7\]"),
        (observe(state=np.array(["a"] * 7)), "accepted: 7 numbers"),
        (observe(state=[[0.0], [0.0, 1.0]]), "accepted: 7 numbers"),
        (observe(state=np.array([0, np.nan, 0, 0, np.inf, 0, 0])), "infinite.*: joint2, joint5"),
        (observe(roles=("wrist",)), "camera 'base' is missing"),
        (observe(roles=("base", "writs")), "camera 'writs'.*did you mean 'wrist'"),
        (observe(prompt=" \n"), "prompt is empty"),
        (
            Observation({"base": np.zeros((4, 4))}, np.zeros(7)),
            r"camera 'base' has shape \[4, 4\]",
        ),
        (
            Observation({"base": np.zeros((4, 4, 3), np.int16)}, np.zeros(7)),
            "type int16; accepted: uint8",
        ),
    ],
)
def test_wrong_observations_are_named(policy, observation, words):
    with pytest.raises(PolicyError, match=words) as error:
        policy.infer(observation)
    assert "\n" not in str(error.value)


def test_integer_state_is_taken(policy):
    whole = policy.infer(observe(state=np.zeros(7, dtype=np.int64)), seed=1)
    np.testing.assert_array_equal(
        whole.actions, policy.infer(observe(state=np.zeros(7)), seed=1).actions
    )


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"denoise_steps": -1}, PolicyError, "denoise_steps is -1; accepted: .* from 0 to 1000"),
        ({"denoise_steps": 2.0}, PolicyError, "whole number"),
        ({"horizon": 11}, PolicyError, "horizon is 11; accepted: a whole number from 1 to 10"),
        ({"seed": -1}, PolicyError, "seed is -1"),
        ({"threads": 0}, PolicyError, "threads is 0"),
        ({"device": "tpu"}, PolicyError, "accepted: auto, cpu, cuda"),
        ({"device": "cuda:77"}, PolicyError, "use device cpu or auto"),
        ({"backend": "fast"}, BackendError, "accepted: auto, eager"),
        ({"precision": {"vision": "int8"}}, BackendError, "int8"),
        ({"precision": "fp8", "backend": "eager"}, BackendError, "fp8"),
        ({"robot": "lbr"}, RobotProfileError, "accepted: aloha"),
        ({"tokenizer": "gone.model"}, PolicyError, "does not exist"),
        ({"camera_roles": {"base": "x"}}, PolicyError, "LeRobot"),
        ({"control_hz": -1.0}, RobotProfileError, "control_hz"),
    ],
)
def test_wrong_parameters_are_named(options, error, words):
    with pytest.raises(error, match=words) as caught:
        Policy.load("random:tiny", **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["random:", "random:huge", "random:tiny:x", "/no/where"])
def test_unknown_checkpoints(name):
    with pytest.raises(PolicyError, match=r"accepted: .*random:tiny"):
        Policy.load(name)


@pytest.mark.parametrize("robot", ["libero", "droid", "droid_jointpos", "aloha", "ur5e"])
def test_every_shipped_robot_runs_on_random_weights(robot):
    one = Policy.load("random:tiny", robot=robot, prompt="go")
    n = len(one.robot.state_names)
    chunk = one.infer(observe(n, roles=one.robot.camera_roles), denoise_steps=1)
    assert chunk.actions.shape == (one.robot.horizon, len(one.robot.action_names))
    assert one.warm_up() > 0
    one.close()


def test_closed_policy_says_so():
    one = Policy.load("random:tiny")
    one.close()
    one.close()
    with pytest.raises(PolicyError, match="the policy is closed"):
        one.infer(observe())


def test_noise_is_a_function_of_the_seed():
    a = seeded_noise(3, 50, 32)
    torch.testing.assert_close(a, seeded_noise(3, 50, 32))
    assert abs(float(a.std()) - 1) < 0.1


# openpi --------------------------------------------------------------------------------------


def model_answer(pictures, tokens, seed, horizon, clock="openpi", steps=2):
    """The plain model without policy and engine: images float [V, 3, S, S]."""
    model = Pi05.random(Pi05Config.preset("tiny"), 0)
    noise = seeded_noise(seed, horizon, 32)[None]
    ids = torch.as_tensor(tokens)[None]
    out = model.sample(
        pictures[None], torch.ones(1, len(pictures), dtype=torch.bool), ids,
        torch.ones_like(ids, dtype=torch.bool), noise, steps=steps, clock=clock,
    )  # fmt: skip
    return out[0].numpy().astype(np.float64)


def openpi_pictures(n):
    from pi05_ros.backends.resize import resize_with_pad_pillow, to_model_range

    return torch.stack(
        [to_model_range(torch.from_numpy(resize_with_pad_pillow(p, 56))) for p in PICTURES[:n]]
    )


def test_a_file_that_says_its_weights_are_random_is_not_trusted(tmp_path, capsys):
    """The mark is in the weights, so that a copy with other files beside it keeps it."""
    script = Path(__file__).parents[2] / "scripts" / "random_checkpoint.py"
    made = runpy.run_path(str(script))["write_checkpoint"](tmp_path / "c", "aloha", "tiny", 5)
    one = Policy.load(made, robot="aloha", tokenizer="bytes", threads=1)
    assert one.info.random_weights
    assert one.info.checkpoint_hash.startswith("sha256:")
    assert "weights are random: the actions mean nothing" in one.info.assumptions
    assert main(["inspect", str(made)]) == 0
    assert "the weights are random" in capsys.readouterr().out


def test_aloha_from_observation_to_commands(tmp_path, weights):
    """Every step of openpi's order worked out here; delta in pi space, then flips and grippers."""
    data = openpi_checkpoint(tmp_path / "c", weights, "trossen", 14, 14, {"action_horizon": 6})
    one = Policy.load(tmp_path / "c", robot="aloha", tokenizer="bytes", denoise_steps=2)
    assert one.info.checkpoint_hash.startswith("sha256:")
    assert not one.info.random_weights
    state = np.linspace(0.05, 0.8, 14)
    chunk = one.infer(observe(14, ("base", "wrist", "wrist_2"), "fold it", state), seed=4)

    pi_state = aloha_state_to_pi(state)
    q01, q99 = (np.array(data["state"][k]) for k in ("q01", "q99"))
    normalized = (pi_state - q01) / (q99 - q01 + 1e-6) * 2 - 1
    bins = np.digitize(normalized, np.linspace(-1, 1, 257)[:-1]) - 1
    text = f"Task: fold it, State: {' '.join(map(str, bins))};\nAction: "
    tokens = [2, *ByteTokenizer(512).encode(text)]
    raw = model_answer(openpi_pictures(3), tokens, 4, 6)
    a01, a99 = (np.array(data["actions"][k]) for k in ("q01", "q99"))
    actions = (raw[:, :14] + 1) / 2 * (a99 - a01 + 1e-6) + a01
    for j in range(14):
        if j not in (6, 13):
            actions[:, j] += pi_state[j]
    expected = aloha_actions_from_pi(actions)
    assert chunk.actions.shape == (6, 14)
    np.testing.assert_allclose(chunk.actions, expected, atol=5e-5)


def test_libero_prompt_has_no_state(tmp_path, weights):
    data = openpi_checkpoint(tmp_path / "c", weights, "physical-intelligence/libero", 8, 7)
    one = Policy.load(
        tmp_path / "c", robot="libero", tokenizer="bytes", denoise_steps=2, backend="eager"
    )
    a = one.infer(observe(8, prompt="open_it"), seed=4)
    b = one.infer(observe(8, prompt="open_it", state=np.zeros(8)), seed=4)
    np.testing.assert_array_equal(a.actions, b.actions)
    tokens = [2, *ByteTokenizer(512).encode("open it\n")]
    raw = model_answer(openpi_pictures(2), tokens, 4, 10)[:, :7]
    q01, q99 = (np.array(data["actions"][k]) for k in ("q01", "q99"))
    np.testing.assert_allclose(a.actions, (raw + 1) / 2 * (q99 - q01 + 1e-6) + q01, atol=5e-5)


def test_openpi_checkpoint_needs_robot_tokenizer_and_statistics(tmp_path, weights, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("OPENPI_DATA_HOME", raising=False)
    folder = tmp_path / "c"
    openpi_checkpoint(folder, weights, "droid", 8, 8)
    with pytest.raises(PolicyError, match="does not say which robot"):
        Policy.load(folder)
    with pytest.raises(PolicyError, match=r"paligemma_tokenizer\.model not found"):
        Policy.load(folder, robot="droid")
    (folder / "assets" / "droid" / "norm_stats.json").unlink()
    with pytest.raises(PolicyError, match="no norm_stats"):
        Policy.load(folder, robot="droid", tokenizer="bytes")


def test_checkpoint_may_name_its_robot_and_tokenizer(tmp_path, weights):
    config = {"robot": "sim_arm", "tokenizer": "bytes", "action_horizon": 8}
    openpi_checkpoint(tmp_path / "c", weights, "sim_arm", 7, 7, config)
    one = Policy.load(tmp_path / "c", denoise_steps=1)
    assert (one.info.robot, one.info.tokenizer, one.info.horizon) == ("sim_arm", "bytes", 8)
    assert not one.info.random_weights
    assert Policy.load(tmp_path / "c" / "model.safetensors").info.robot == "sim_arm"


def test_statistics_of_another_asset_are_warned_of_once_per_load(tmp_path, weights, caplog):
    openpi_checkpoint(tmp_path / "c", weights, "other", 8, 8)
    said = read_recipe(tmp_path / "c", "droid").doubts  # as `pi05 inspect` shows them
    assert not caplog.messages
    policy = Policy.load(tmp_path / "c", robot="droid", tokenizer="bytes")
    assert "the asset 'droid'" in said[0]
    assert tuple(caplog.messages) == policy.info.doubts == said


def test_assumptions_are_logged_in_the_words_of_info(tmp_path, weights, caplog):
    openpi_checkpoint(tmp_path / "c", weights, "droid", 8, 8)
    with caplog.at_level(logging.INFO, "pi05_ros.policy"):
        info = Policy.load(tmp_path / "c", robot="droid", tokenizer="bytes").info
    assert info.assumptions
    for sentence in info.assumptions:
        assert f"assumed: {sentence}" in caplog.messages


def test_flow_steps_of_the_checkpoint_are_the_default(tmp_path, weights):
    openpi_checkpoint(tmp_path / "c", weights, "sim_arm", 7, 7, {"num_steps": 3})
    load = functools.partial(Policy.load, tmp_path / "c", robot="sim_arm", tokenizer="bytes")
    policy = load()
    assert policy.info.denoise_steps == 3
    obs = Observation({"base": np.zeros((8, 8, 3), np.uint8)}, np.zeros(7), "x")
    assert policy.infer(obs).denoise_steps == 3
    assert policy.infer(obs, denoise_steps=0).denoise_steps == 3
    assert policy.infer(obs, denoise_steps=2).denoise_steps == 2
    info = load(denoise_steps=5).info
    assert info.denoise_steps == 5
    assert any("denoise_steps 5 is used, not 3" in a for a in info.assumptions)
    assert Policy.load("random:tiny").info.denoise_steps == 10


def test_config_json_wins_over_the_profile_and_it_is_said(tmp_path, weights):
    openpi_checkpoint(tmp_path / "c", weights, "droid", 8, 8, {"action_horizon": 9})
    recipe = read_recipe(tmp_path / "c", "droid")
    assert recipe.profile.horizon == 9
    assert any("horizon 9 of config.json is used, not 15" in a for a in recipe.assumptions)


@pytest.mark.parametrize("tokens", ["max_token_len", "max_prompt_tokens"])
@pytest.mark.parametrize("horizon", ["action_horizon", "horizon"])
def test_sizes_under_either_name_of_config_json_are_followed(tmp_path, weights, tokens, horizon):
    """openpi's names, and those that `save_openpi` writes."""
    openpi_checkpoint(tmp_path / "c", weights, "droid", 8, 8, {tokens: 40, horizon: 9})
    one = Policy.load(tmp_path / "c", robot="droid", tokenizer="bytes", device="cpu", prompt="go")
    assert one.info.horizon == 9
    assert (one.recipe.max_prompt_tokens, one._reader.encoder.max_tokens) == (40, 40)


def test_broken_weights_are_a_checkpoint_error(tmp_path, weights):
    openpi_checkpoint(tmp_path / "c", weights, "droid", 8, 8)
    (tmp_path / "c" / "model.safetensors").unlink()
    (tmp_path / "c" / "model.safetensors").write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError):
        Policy.load(tmp_path / "c", robot="droid", tokenizer="bytes")


# LeRobot -------------------------------------------------------------------------------------


@pytest.mark.parametrize("era", ["0.4", "0.5"])
def test_lerobot_from_observation_to_commands(tmp_path, weights, era):
    """State padded in the prompt and borders at -3 up to 0.4.4; neither from 0.5 on."""
    names = ["a.pos", "b.pos", "c.pos", "gripper.pos"]
    folder = write_lerobot(
        tmp_path / "c", states=4, actions=4, mode="MEAN_STD", relative=["gripper"], names=names,
        resolution=56,
    )  # fmt: skip
    (folder / "model.safetensors").symlink_to(weights)
    one = Policy.load(
        folder, tokenizer="bytes", denoise_steps=2, lerobot_era=era, backend="eager", device="cpu"
    )
    state = np.array([0.1, -0.4, 0.3, 0.9], dtype=np.float32)
    chunk = one.infer(observe(4, prompt="pick", state=state), seed=4)

    s, a = stats(4, 1), stats(4, 2)
    normalized = (state - s["mean"]) / (s["std"] + np.float32(1e-8))
    if era == "0.4":
        normalized = np.pad(normalized, (0, 28))
    bins = np.digitize(normalized, np.linspace(-1, 1, 257)[:-1]) - 1
    text = f"Task: pick, State: {' '.join(map(str, bins))};\nAction: "
    tokens = [2, *ByteTokenizer(512).encode(text)][:180]
    border = -3.0 if era == "0.4" else -1.0
    pictures = torch.stack([lerobot_image(p, 56, border) for p in PICTURES[:2]])
    raw = model_answer(pictures, tokens, 4, 10, clock="exact")[:, :4]
    expected = raw * a["std"] + a["mean"]
    expected[:, :3] += state[:3]
    assert chunk.names == tuple(names)
    np.testing.assert_allclose(chunk.actions, expected, atol=5e-5)
    assert one.info.robot == "lerobot:c"


def test_degrees_of_the_files_are_radians_on_the_robot(tmp_path, weights):
    """The same checkpoint with a profile in degrees, and without one."""
    names = ["shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper"]
    config = {"action_feature_names": [f"{name}.pos" for name in names]}
    write_lerobot(tmp_path / "c", resolution=56, relative=[], names=None, config=config)
    shutil.copy(weights, tmp_path / "c" / "model.safetensors")
    load = functools.partial(Policy.load, tmp_path / "c", tokenizer="bytes", denoise_steps=2)
    plain, arm = load(), load(robot="so101")
    numbers = np.array([0.3, -0.2, 0.1, 0.4, -0.5, 0.6])  # degrees, and 0.6 of 100
    observed = np.radians(numbers)
    observed[5] = -0.17453 + 0.006 * (1.74533 + 0.17453)
    expected = plain.infer(observe(state=numbers, prompt="x"), seed=1)
    chunk = arm.infer(observe(state=observed, prompt="x"), seed=1)
    np.testing.assert_allclose(chunk.normalized, expected.normalized, atol=1e-5)
    np.testing.assert_allclose(
        chunk.actions[:, :5], np.radians(expected.actions[:, :5]), atol=1e-6
    )
    share = expected.actions[:, 5] / 100
    np.testing.assert_allclose(chunk.actions[:, 5], -0.17453 + share * 1.91986, atol=1e-6)
    assert {unit.name for unit in chunk.units} == {"RADIAN"}
    assert {unit.name for unit in expected.units} == {"DIMENSIONLESS"}
    assert any("columns in degree lie within" in doubt for doubt in arm.info.doubts)


@pytest.mark.parametrize("bos_id", [2, None])
def test_prompts_begin_with_bos_as_the_checkpoint_s_own_library_has_it(tmp_path, weights, bos_id):
    """openpi adds it always, LeRobot leaves it to the tokenizer's file."""
    silent = types.SimpleNamespace(name="t.json", bos_id=bos_id, adds_bos=False, vocab_size=512)
    lerobot = read_recipe(write_lerobot(tmp_path / "l"))
    changed = with_tokenizer(lerobot, silent, 512)
    assert not changed.prompt_bos
    assert "prompts begin without BOS: tokenizer t.json adds none" in changed.assumptions[-1]
    openpi_checkpoint(tmp_path / "o", weights, "sim_arm", 7, 7)
    openpi = read_recipe(tmp_path / "o", "sim_arm")
    if bos_id is None:
        with pytest.raises(PolicyError, match="has no <bos> token"):
            with_tokenizer(openpi, silent, 512)
    else:
        assert with_tokenizer(openpi, silent, 512).prompt_bos


@pytest.mark.parametrize("changed", [False, True])
def test_the_time_of_the_hash_is_used_to_warm_up(tmp_path, weights, monkeypatch, changed):
    """The hash is of what was read; files that change before it is known are refused."""
    openpi_checkpoint(tmp_path / "c", weights, "trossen", 14, 14)
    file = tmp_path / "c" / "model.safetensors"
    file.unlink()
    shutil.copy(weights, file)
    warmed = threading.Event()
    hashing, warm_up = file_hash.checkpoint_hash, Policy.warm_up

    def slow(path, since):
        assert warmed.wait(60)
        return hashing(path, since)

    def noted(self, *args):
        warm_up(self, *args)
        if changed:
            file.touch()
        warmed.set()

    monkeypatch.setattr(file_hash, "checkpoint_hash", slow)
    monkeypatch.setattr(Policy, "warm_up", noted)

    def load(**options):
        return Policy.load(tmp_path / "c", robot="aloha", tokenizer="bytes", threads=1, **options)

    if changed:
        with pytest.raises(CheckpointError, match="changed while it was read"):
            load(warm_up=True)
        return
    one = load(warm_up=True)
    assert one.info.checkpoint_hash == hashing(file)
    warmed.clear()
    threading.Timer(0.05, warmed.set).start()
    monkeypatch.setattr(Policy, "warm_up", lambda self: pytest.fail("not asked for"))
    assert load().info == one.info
