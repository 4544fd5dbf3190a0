"""The LIBERO client against a stand-in of hf-libero's surface."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pi05_ros.backends.resize import resize_with_pad_pillow
from pi05_ros.cli.main import main
from pi05_ros.model import Pi05Config
from pi05_ros.policy import Observation, Policy
from pi05_ros.policy.chunking.chunk_generator import ChunkGenerator
from pi05_ros.sim.evaluation.evaluate import EpisodeJob
from pi05_ros.sim.libero import benchmark
from pi05_ros.sim.libero.libero_episode import LiberoRunner, LiberoSetting, suite_totals

STAND_IN = Path(__file__).parent / "libero_stand_in"
SETTLING = [[0.0] * 6 + [-1.0]] * 10


def forget_libero():
    for name in [name for name in sys.modules if name.partition(".")[0] == "libero"]:
        del sys.modules[name]


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    """The stand-in's environment module, importable as hf-libero is; no configuration yet."""
    monkeypatch.syspath_prepend(str(STAND_IN))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    # set and taken back, so that what `prepare` sets does not outlive the test
    monkeypatch.setenv("LIBERO_CONFIG_PATH", "")
    monkeypatch.delenv("LIBERO_CONFIG_PATH")
    monkeypatch.setenv("MUJOCO_GL", "egl")
    monkeypatch.delenv("MUJOCO_GL")
    forget_libero()
    benchmark.prepare(tmp_path)
    import libero.libero.envs as envs

    envs.OPENED.clear()
    yield envs
    forget_libero()


def runner(tasks, **options):
    return LiberoRunner("random:tiny", device="cpu", tasks=tuple(tasks), **options)


def quick(**changed):
    return LiberoSetting(**{"denoise_steps": 1, "max_steps": 12, **changed})


def episode(tasks, trial=0, setting=None, task=0, frames=None, **options):
    label = tasks[task].label
    job = EpisodeJob(setting or quick(), label, label, trial)
    return runner(tasks, **options).run(job, frames)


def actions(env):
    return [call[1] for call in env.log if call[0] == "step"]


def test_prepare_answers_liberos_question_without_touching_the_home(stand_in, tmp_path):
    assert not (tmp_path / "home" / ".libero").exists()
    from libero.libero import get_libero_path

    assert Path(get_libero_path("bddl_files")) == STAND_IN / "libero" / "libero" / "bddl_files"


def test_the_users_own_configuration_is_kept(stand_in, tmp_path, monkeypatch):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "config.yaml").write_text("bddl_files: /elsewhere\n")
    monkeypatch.setenv("LIBERO_CONFIG_PATH", str(folder))
    benchmark.prepare(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_episode_starts_like_openpis_client(stand_in):
    tasks = benchmark.Libero().tasks("libero_spatial")
    result = episode(tasks, trial=2)
    env = stand_in.OPENED[0]
    assert env.log[:3] == [("seed", 9), ("reset",), ("state", 184.0)]
    assert actions(env)[:10] == SETTLING
    assert len(actions(env)) == 10 + 12
    assert (result.steps, result.success, result.done) == (12, False, "")
    assert result.task == "libero_spatial/0: open the drawer"


def test_policy_gets_turned_pictures_state_and_words(stand_in, monkeypatch):
    seen = []
    make = ChunkGenerator.make
    monkeypatch.setattr(
        ChunkGenerator, "make", lambda self, obs, *rest: seen.append(obs) or make(self, obs, *rest)
    )
    episode(benchmark.Libero().tasks("libero_spatial"), setting=quick(max_steps=11))
    assert len(seen) == 3  # at steps 0, 5 and 10
    for obs, step in zip(seen, (10, 15, 20), strict=True):
        assert obs.prompt == "open the drawer"
        assert obs.images["base"].shape == (256, 256, 3)
        assert obs.images["base"][-1, -1].tolist() == [step, 1, 2]
        assert obs.images["wrist"][-1, -1].tolist() == [step, 1, 2]
        assert obs.images["wrist"][0, 0].tolist() == [128] * 3
        turn = [math.pi / 2, 0, 0]
        assert obs.state == pytest.approx([0.1, 0.2, 1 + step / 1000, *turn, 0.02, -0.02])


def test_policy_resizes_as_openpis_client_would():
    """The client sends images of the model's size; from those of LIBERO come equal actions."""
    policy = Policy.load("random:tiny", robot="libero", backend="eager", denoise_steps=1)
    big = np.random.default_rng(0).integers(0, 256, (2, 256, 256, 3), dtype=np.uint8)
    size = Pi05Config.preset("tiny").vision.image_size
    small = np.stack([resize_with_pad_pillow(picture, size) for picture in big])
    chunks = [
        policy.infer(
            Observation(dict(zip(("base", "wrist"), p, strict=True)), np.zeros(8), "go"), seed=3
        )
        for p in (big, small)
    ]
    assert np.array_equal(chunks[0].actions, chunks[1].actions)


def test_five_of_ten_actions_go_to_the_robot_unchanged(stand_in, monkeypatch):
    made = []
    make = ChunkGenerator.make

    def keep(self, *args):
        made.append(make(self, *args))
        return made[-1]

    monkeypatch.setattr(ChunkGenerator, "make", keep)
    result = episode(benchmark.Libero().tasks("libero_spatial"))
    sent = np.array(actions(stand_in.OPENED[0])[10:])
    want = np.concatenate([m.chunk.actions[:5] for m in made])[: len(sent)]
    assert np.array_equal(sent, want.astype(np.float64))
    assert [m.chunk.seed for m in made] == [0, 1, 2]
    assert result.inferences == 3


def test_success_ends_the_episode_and_is_repeated_exactly(stand_in):
    tasks = benchmark.Libero().tasks("libero_spatial")
    frames: list[np.ndarray] = []
    result = episode(tasks, trial=1, frames=frames)
    assert (result.success, result.steps, result.done) == (True, 7, tasks[0].label)
    assert len(frames) == 7
    assert frames[0][-1, -1].tolist() == [11, 1, 2]
    assert episode(tasks, trial=1) == result


def test_a_late_first_chunk_is_waited_for_with_the_fingers_as_they_are(stand_in):
    episode(benchmark.Libero().tasks("libero_spatial"), setting=quick(delay_ms=100))
    sent = actions(stand_in.OPENED[0])[10:]
    assert sent[:2] == SETTLING[:2]
    assert sent[2] != SETTLING[0]


def test_an_environment_is_kept_for_its_task_and_closed_after_it(stand_in):
    tasks = benchmark.Libero().tasks("libero_spatial")
    one = runner(tasks, seed=100)
    for task, trial in ((0, 0), (0, 1), (1, 0)):
        one.run(EpisodeJob(quick(max_steps=1), tasks[task].label, tasks[task].label, trial))
    assert [env.closed for env in stand_in.OPENED] == [True, False]
    assert [c for c in stand_in.OPENED[0].log if c[0] == "seed"] == [("seed", 100), ("seed", 101)]
    one.close()
    assert all(env.closed for env in stand_in.OPENED)


@pytest.mark.parametrize(
    ("changed", "trial", "robot", "words"),
    [
        ({"replan": 11}, 0, "libero", "chunk has 10 steps"),
        ({}, 3, "libero", "trials 0 to 2"),
        ({}, 0, "droid", "8 and 7"),
        ({}, 0, "aloha", "14 actions; LIBERO has 8 and 7"),
    ],
)
def test_what_cannot_be_run_is_said(stand_in, changed, trial, robot, words):
    tasks = benchmark.Libero().tasks("libero_spatial")
    with pytest.raises(benchmark.LiberoError, match=words):
        episode(tasks, trial=trial, setting=quick(**changed), robot=robot)


def test_profile_that_turns_pictures_too_is_refused(tmp_path):
    from pi05_ros.resources import config_dir

    text = (config_dir() / "robots" / "libero.yaml").read_text()
    path = tmp_path / "turned.yaml"
    path.write_text(text.replace("required: true}", "required: true, rotate_180: true}"))
    with pytest.raises(benchmark.LiberoError, match="remove rotate_180"):
        benchmark.check_policy(Policy.load("random:tiny", robot=path, backend="eager"))


def test_settings_have_liberos_defaults():
    setting = LiberoSetting()
    assert (setting.replan, setting.max_steps, setting.label) == (5, 0, "default")
    assert benchmark.SUITES == {
        "libero_spatial": 220,
        "libero_object": 280,
        "libero_goal": 300,
        "libero_10": 520,
        "libero_90": 400,
    }
    with pytest.raises(ValueError, match="nudge"):
        LiberoSetting(nudge=0.5)
    with pytest.raises(ValueError, match="max_steps 1000; accepted: 0 to 900"):
        LiberoSetting(max_steps=1000)


def test_suite_limit_counts_without_settling(stand_in, monkeypatch):
    monkeypatch.setitem(benchmark.SUITES, "libero_goal", 15)
    result = episode(benchmark.Libero().tasks("libero_goal"), setting=quick(max_steps=0))
    assert result.steps == 15
    assert len(actions(stand_in.OPENED[0])) == 25


def test_missing_meshes_are_named(stand_in, monkeypatch, tmp_path):
    monkeypatch.setenv("STAND_IN_ASSETS", str(tmp_path / "none"))
    with pytest.raises(benchmark.LiberoError, match=r"could not be downloaded.*none"):
        episode(benchmark.Libero().tasks("libero_spatial"))


def test_an_environment_that_does_not_open_is_explained(stand_in, monkeypatch):
    def broken(**_):
        raise RuntimeError("no EGL device")

    monkeypatch.setattr(stand_in, "OffScreenRenderEnv", broken)
    with pytest.raises(benchmark.LiberoError, match=r"no EGL device.*osmesa"):
        episode(benchmark.Libero().tasks("libero_spatial"))


def test_without_hf_libero_the_command_says_how_to_get_it(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "path", [p for p in sys.path if "libero" not in p])
    monkeypatch.setitem(sys.modules, "libero", None)
    for words in ("", "--checkpoint random:tiny"):
        assert main(["eval", "libero", "--out", str(tmp_path / "o"), *words.split()]) == 2
        error = capsys.readouterr().err
        assert error == "pi05 eval: LIBERO is not installed; try: pip install hf-libero\n"


WORDS = "--checkpoint random:tiny --device cpu --steps 1 --max-steps 8"


def test_command_writes_the_usual_results_and_resumes(stand_in, tmp_path, capsys):
    words = f"eval libero --out {tmp_path} --suite libero_spatial,libero_goal --tasks 1 {WORDS}"
    assert main([*words.split(), "--trials", "1:3", "--gif", "1"]) == 0
    out = capsys.readouterr().out
    assert "| libero_goal/1: push the plate | same | 2 | 0.500 |" in out
    assert "| libero_spatial | same | 2 | 0.500 |" in out
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [entry["task"].partition(":")[0] for entry in summary] == [
        "libero_spatial/1",
        "libero_goal/1",
        "libero_spatial",
        "libero_goal",
    ]
    assert (tmp_path / "results.csv").read_text().count("\n") == 5
    assert (tmp_path / "summary.md").read_text() in out
    with Image.open(tmp_path / "libero_goal_1_push_the_plate-1-done.gif") as gif:
        assert gif.n_frames == 7
    episodes = len(stand_in.OPENED)
    assert main([*words.split(), "--trials", "1:3"]) == 0
    assert len(stand_in.OPENED) == episodes
    assert main([*words.split(), "--trials", "1:3", "--no-resume"]) == 0
    assert len(stand_in.OPENED) == episodes + 2
    other = [word.replace("random:tiny", "random:tiny:1") for word in words.split()]
    assert main([*other, "--trials", "1:3"]) == 2
    assert "weights random:tiny, not random:tiny:1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--trials 1", "--checkpoint is needed"),
        (f"{WORDS} --suite libero_100", "libero_spatial, libero_object"),
        (f"{WORDS} --suite libero_mars", "'libero_mars'"),
        (f"{WORDS} --tasks 2", "'2'; accepted: all, names, or numbers from 0 to 1"),
        (f"{WORDS} --tasks ,", "no task"),
        (f"{WORDS} --trials 0", "trials '0'"),
        (f"{WORDS} --renderer ray", "egl, osmesa"),
        (f"{WORDS} --seeds 0:3", "--seeds is only for pi05 eval arm"),
        (f"{WORDS} --ros", "--ros is only for pi05 eval arm"),
        (f"{WORDS} --chunking wild", "'wild'"),
    ],
)
def test_bad_options_are_named(stand_in, words, said, tmp_path, capsys):
    assert main(["eval", "libero", "--out", str(tmp_path), *words.split()]) == 2
    assert said in capsys.readouterr().err


def test_liberos_options_are_not_for_the_arm(tmp_path, capsys):
    assert main(["eval", "--out", str(tmp_path), "--suite", "libero_goal"]) == 2
    assert "--suite is only for pi05 eval libero" in capsys.readouterr().err


def test_a_checkpoint_of_another_robot_is_refused(stand_in, tmp_path, capsys):
    from pi05_ros.sim.training.shipped import CHECKPOINT

    words = f"eval libero --out {tmp_path} --trials 1 --checkpoint {CHECKPOINT}"
    assert main(words.split()) == 2
    assert "belongs to another robot" in capsys.readouterr().err


def test_totals_count_all_tasks_of_a_suite(stand_in):
    tasks = benchmark.Libero().tasks("libero_spatial")
    setting = quick(max_steps=8)
    rows = []
    for task in tasks:
        one = runner(tasks)
        for trial in (0, 1):
            result = one.run(EpisodeJob(setting, task.label, task.label, trial))
            rows.append({**LiberoSetting.__dict__, **setting.__dict__, **result.row()})
    (total,) = suite_totals(rows)
    assert (total["task"], total["episodes"], total["success"]) == ("libero_spatial", 4, 0.5)
    assert total["unasked_tasks_done"] == 0
