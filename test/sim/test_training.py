"""Demonstrations and the training step, on a handful of frames."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pi05_ros.cli.main import main as pi05
from pi05_ros.errors import InvalidValueError
from pi05_ros.model import load_checkpoint
from pi05_ros.policy.checkpoints.norm_stats import openpi_normalization
from pi05_ros.policy.prompt.prompt import PromptEncoder
from pi05_ros.policy.prompt.tokenizer import load_tokenizer
from pi05_ros.policy.robots.profile_yaml import load_profile
from pi05_ros.sim.arm.tasks import TASKS
from pi05_ros.sim.arm.world import World
from pi05_ros.sim.training.demonstrations import Demonstrations, episode, generate
from pi05_ros.sim.training.disturbance import Disturbance
from pi05_ros.sim.training.objective import TrainingRecipe, prepare, write_stats
from pi05_ros.sim.training.rollout import rollout
from pi05_ros.sim.training.shipped import CONFIG, HORIZON
from pi05_ros.sim.training.train import batched_policy, put_in_place, save_policy
from pi05_ros.sim.training.trainer import Trainer
from pi05_ros.sim.training.vocabulary import train_tokenizer

RECIPE = TrainingRecipe(batch=4, draws=2, warmup=2)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("training")
    frames = generate(root / "data", episodes=3, workers=1)
    data = Demonstrations.read(root / "data")
    assert frames == len(data.tasks) > 20
    write_stats(root / "ckpt", data)
    train_tokenizer(root / "ckpt" / "tokenizer.model")
    encoder = PromptEncoder(load_tokenizer(None, root / "ckpt", CONFIG.vocab), True, 48)
    normalization = openpi_normalization(root / "ckpt", load_profile("sim_arm"))
    return root, data, prepare(data, encoder, normalization)


def test_demonstrations_are_reproducible_and_hold_the_experts_own_commands():
    world = World()
    task = TASKS["pick_red"]
    frames, again = (episode(world, task, seed=3, disturbed=False) for _ in range(2))
    assert len(frames) > 20
    assert frames[0].images.shape == (2, 112, 112, 3)
    for a, b in zip(frames, again, strict=True):
        assert np.array_equal(a.images, b.images)
        assert np.array_equal(a.actions, b.actions)
    for now, later in itertools.pairwise(frames):
        assert np.array_equal(now.actions[1:], later.actions[:-1])


def test_prepared_frames_fit_the_model(checkpoint):
    _, data, tensors = checkpoint
    assert tensors["actions"].shape == (len(data.tasks), HORIZON, 32)
    assert tensors["actions"][..., 7:].abs().max() == 0
    assert 0 < tensors["tokens"].max() < CONFIG.vocab
    assert tensors["tokens"].shape[1] < CONFIG.max_prompt_tokens


def test_training_lowers_the_loss_and_a_resumed_run_goes_on_alike(checkpoint, tmp_path):
    _, _, tensors = checkpoint
    trainer = Trainer(torch.device("cpu"), RECIPE, compiled=False)
    losses = [float(trainer.train_step(tensors, 0.0)) for _ in range(6)]
    assert losses[-1] < losses[0]
    trainer.seconds = 40.5
    trainer.save(tmp_path / "state.safetensors")
    other = Trainer(torch.device("cpu"), RECIPE, compiled=False)
    other.resume(tmp_path / "state.safetensors")
    assert (other.step, other.seconds) == (6, 40.5)
    assert float(trainer.train_step(tensors, 0.5)) == pytest.approx(
        float(other.train_step(tensors, 0.5)), rel=1e-4
    )


def test_a_training_that_is_cut_off_goes_on_in_the_middle_of_its_schedule(
    checkpoint, tmp_path, monkeypatch, capsys
):
    """The state is there before the end, and the second run trains what is left of --minutes."""
    from pi05_ros.sim.training import train

    root, _, _ = checkpoint
    progress = []
    take = Trainer.train_step

    def step(self, data, share):
        progress.append(share)
        if len(progress) == 3:
            raise KeyboardInterrupt
        return take(self, data, share)

    clock = SimpleNamespace(monotonic=itertools.count(0.0, 0.1).__next__)
    monkeypatch.setattr(train, "time", clock)  # --minutes count on it
    monkeypatch.setattr(train, "SAVE_EVERY_S", 0.0)
    monkeypatch.setattr(Trainer, "train_step", step)
    words = f"{tmp_path / 'ckpt'} --data {root / 'data'} --batch 2 --eval-seeds 0 --device cpu"
    state = ["--state", str(tmp_path / "state"), "--minutes", "0.05", "--episodes", "9"]
    with pytest.raises(KeyboardInterrupt):
        train.main([*words.split(), *state])
    assert train.main([*words.split(), *state, "--resume", str(tmp_path / "state")]) == 0
    assert progress[0] == 0.0
    assert progress[3] == pytest.approx(progress[2])
    assert "are kept, whatever --episodes says" in capsys.readouterr().out


@pytest.mark.parametrize("seconds", [2.9, 3.0])
def test_a_resumed_run_is_compiled_where_its_schedule_is(
    checkpoint, tmp_path, monkeypatch, capsys, seconds
):
    """A first step at the full rate would undo what the end of the schedule has settled."""
    from pi05_ros.sim.training import train

    root, _, _ = checkpoint
    trainer = Trainer(torch.device("cpu"), RECIPE, compiled=False)
    trainer.seconds = seconds
    trainer.save(tmp_path / "state")
    progress = []

    def step(self, data, share):
        progress.append(share)
        return torch.zeros(())

    monkeypatch.setattr(Trainer, "train_step", step)
    words = f"{tmp_path / 'ckpt'} --data {root / 'data'} --eval-seeds 0 --device cpu --compile"
    resumed = ["--minutes", "0.05", "--resume", str(tmp_path / "state")]
    assert train.main([*words.split(), *resumed]) == 0
    assert all(share >= seconds / 3 for share in progress)
    assert bool(progress) == (seconds < 3)
    assert f"resumed at step 0, {seconds:.0f} s of 3" in capsys.readouterr().out


def test_a_run_that_is_killed_leaves_the_checkpoint_as_it_was(checkpoint, tmp_path, monkeypatch):
    """New statistics beside old weights would move the arm to other places, and say nothing."""
    from pi05_ros.sim.training import train

    root, _, _ = checkpoint
    out = tmp_path / "ckpt"
    words = f"{out} --data {root / 'data'} --batch 2 --eval-seeds 0 --device cpu --minutes 0.0001"
    assert train.main(words.split()) == 0
    before = {path.name: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert {"model.safetensors", "norm_stats.json", "tokenizer.model"} <= set(before)

    def killed(self, data, share):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", killed)
        with pytest.raises(KeyboardInterrupt):
            train.main([*words.split()[:-1], "1"])
    after = {path.name: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert after == before
    assert train.main(words.split()) == 0  # and the next run is not disturbed by what was left
    assert (tmp_path / "ckpt.previous" / "model.safetensors").is_file()
    assert not (tmp_path / "ckpt.new").exists()


@pytest.mark.parametrize("exchange", [True, False])
def test_a_directory_takes_the_place_of_another_whole(tmp_path, monkeypatch, exchange):
    from pi05_ros.sim.training import train

    if not exchange:  # a file system that cannot
        monkeypatch.setattr(train, "_exchange", lambda one, other: False)
    place = tmp_path / "place"
    for content in ("1", "2", "3"):
        new = tmp_path / "new"
        new.mkdir()
        (new / "file").write_text(content)
        put_in_place(new, place)
        assert (place / "file").read_text() == content
    assert (tmp_path / "place.previous" / "file").read_text() == "2"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["place", "place.previous"]


def test_parts_of_an_interrupted_run_do_not_stay(tmp_path):
    for name in ("part-000", "part-007"):
        for kind in ("images", "states", "actions", "tasks"):
            np.save(tmp_path / f"{name}.{kind}.npy", np.zeros((5, 1)))
    frames = generate(tmp_path, episodes=1, workers=1, renderer="ray")
    assert frames == len(Demonstrations.read(tmp_path).tasks)
    with pytest.raises(ValueError, match="accepted: 1 or more"):
        generate(tmp_path, episodes=0, workers=1)


def test_saved_policy_loads_and_drives_the_arm(checkpoint):
    root, _, _ = checkpoint
    trainer = Trainer(torch.device("cpu"), RECIPE, compiled=False)
    save_policy(trainer.averaged(), root / "ckpt")
    assert (root / "ckpt" / "model.safetensors").stat().st_size < 12e6
    model = load_checkpoint(root / "ckpt")
    assert model.config == CONFIG
    act = batched_policy(model, root / "ckpt", steps=1)
    outcomes = rollout(act, TASKS["push_blue"], seeds=[1, 2], max_steps=16)
    assert [o.steps for o in outcomes] == [16, 16]


def test_rollouts_use_the_renderer_that_was_asked_for(monkeypatch, tmp_path):
    from pi05_ros.sim.training import train

    asked = []
    monkeypatch.setattr(train, "batched_policy", lambda *_: None)
    monkeypatch.setattr(train, "rollout", lambda *_, renderer: asked.append(renderer) or [])
    with pytest.warns(RuntimeWarning):  # no episodes, no mean
        train.evaluate(None, tmp_path, [], "ray")
    assert asked == ["ray"] * len(TASKS)


@pytest.mark.parametrize(
    ("words", "said"),
    [("--workers 0", "--workers 0; accepted"), ("--resume none", "--resume none: no such file")],
)
def test_bad_options_are_named_before_any_work(words, said, tmp_path, capsys):
    from pi05_ros.sim.training import train

    with pytest.raises(SystemExit, match="2"):
        train.main([str(tmp_path / "ckpt"), *words.split()])
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("version", ["3.0", "2.1"])
def test_training_reads_an_exported_dataset_of_the_expert(version, tmp_path, capsys):
    """Recorded, exported, read: the expert's states and commands, and a checkpoint of them."""
    pytest.importorskip("av")
    pytest.importorskip("pyarrow")
    from pi05_ros.sim.training import train
    from pi05_ros.sim.training.from_dataset import read_dataset
    from pi05_ros.sim.training.record import record_episode

    world = World()
    task = TASKS["push_blue"]
    assert record_episode(world, task, 5, tmp_path / "bag")
    frames = episode(world, task, 5, disturbed=False)
    world.close()
    out = tmp_path / "dataset"
    assert pi05(["dataset", str(tmp_path / "bag"), "--out", str(out), "--version", version]) == 0
    data = read_dataset(out)
    assert set(data.tasks) == {list(TASKS).index("push_blue")}
    assert data.images.shape == (len(data.states), 2, 112, 112, 3)
    count = min(len(frames), len(data.states) - HORIZON)
    assert count > 10
    for k in range(count):
        np.testing.assert_array_equal(data.states[k], frames[k].state)
        np.testing.assert_array_equal(data.actions[k], frames[k].actions)
        assert np.abs(data.images[k].astype(int) - frames[k].images).mean() < 6
    assert (data.actions[-1] == data.actions[-1, 0]).all()
    if version == "3.0":
        words = f"{tmp_path / 'ckpt'} --data {out} --batch 2 --eval-seeds 0 --device cpu"
        assert train.main([*words.split(), "--minutes", "0.0001"]) == 0
        assert "those of the dataset" in capsys.readouterr().out
        assert load_checkpoint(tmp_path / "ckpt").config == CONFIG


def test_a_dataset_of_disturbed_recordings_has_the_frames_of_the_training(tmp_path):
    """The wrong steps are in the recording, marked; no chunk of the training holds one."""
    pytest.importorskip("av")
    pytest.importorskip("pyarrow")
    from pi05_ros.sim.training.from_dataset import read_dataset
    from pi05_ros.sim.training.record import main as record

    seed = next(s for s in range(1_000_002, 1_000_099, 3) if Disturbance.draw(s).within(4, 8))
    words = ["--episodes", "1", "--seed", str(seed), "--disturbed"]
    assert record([str(tmp_path / "bags"), *words]) == 0
    world = World()
    frames = episode(world, TASKS["pick_red"], seed)
    world.close()
    out = tmp_path / "dataset"
    assert pi05(["dataset", str(tmp_path / "bags"), "--out", str(out)]) == 0
    every, kept = read_dataset(out), read_dataset(out, leave_out_interventions=True)
    assert len(kept.tasks) < len(every.tasks)
    # Behind its last row the command of a recording holds: those frames are not compared.
    count = min(len(frames), len(kept.tasks) - HORIZON)
    assert count > 5
    for k, frame in enumerate(frames[:count]):
        np.testing.assert_array_equal(kept.states[k], frame.state)
        np.testing.assert_array_equal(kept.actions[k], frame.actions)
        assert np.abs(kept.images[k].astype(int) - frame.images).mean() < 6


def test_a_dataset_without_a_frame_that_may_be_learnt_from_is_refused(tmp_path, monkeypatch):
    pytest.importorskip("pyarrow")
    from pi05_ros.sim.training import from_dataset

    none = Demonstrations(*(np.zeros((0, 1)) for _ in range(4)))
    monkeypatch.setattr(from_dataset, "read_episodes", lambda *_: iter([none]))
    with pytest.raises(InvalidValueError, match="a person had the arm"):
        from_dataset.read_dataset(tmp_path, leave_out_interventions=True)
