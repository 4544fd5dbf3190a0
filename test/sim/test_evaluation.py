"""The evaluation: settings, resuming, summaries, the command."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from pi05_ros.cli.main import main
from pi05_ros.sim.evaluation import evaluate as evaluate_module
from pi05_ros.sim.evaluation.evaluate import RESULTS, EpisodeJob, evaluate, jobs
from pi05_ros.sim.evaluation.setting import Setting
from pi05_ros.sim.evaluation.success_rates import Rate, markdown, mcnemar, summarize


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """An untrained policy in the shape of the shipped one."""
    import torch

    from pi05_ros.sim.training.demonstrations import Demonstrations, generate
    from pi05_ros.sim.training.objective import TrainingRecipe, write_stats
    from pi05_ros.sim.training.train import save_policy
    from pi05_ros.sim.training.trainer import Trainer
    from pi05_ros.sim.training.vocabulary import train_tokenizer

    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("policy")
    generate(root / "data", episodes=3, workers=1)
    write_stats(root / "ckpt", Demonstrations.read(root / "data"))
    train_tokenizer(root / "ckpt" / "tokenizer.model")
    trainer = Trainer(torch.device("cpu"), TrainingRecipe(), compiled=False)
    save_policy(trainer.averaged(), root / "ckpt")
    return str(root / "ckpt")


def test_settings_count_delay_in_steps_and_refuse_nonsense():
    assert [Setting(delay_ms=ms).delay_steps for ms in (0, 1, 50, 51, 200)] == [0, 1, 1, 2, 4]
    assert Setting().label == "default"
    assert Setting(chunking="rtc-vjp", delay_ms=100).label == "chunking=rtc-vjp delay_ms=100"
    for bad in ({"chunking": "x"}, {"delay_ms": -1}, {"kv_reuse": "0"}, {"drop_wrist": 2.0}):
        with pytest.raises(ValueError, match=r"."):
            Setting(**bad)


def test_an_interrupted_evaluation_goes_on_where_it_was(checkpoint, tmp_path, monkeypatch):
    short = [
        Setting(denoise_steps=1, chunking=c, delay_ms=100, max_steps=24)
        for c in ("naive", "rtc-trained")
    ]
    todo = jobs(short, ["pick_red"], [0, 1])
    calls = []
    original = evaluate_module.run_episode

    def counted(*args):
        calls.append(args[5])
        return original(*args)

    monkeypatch.setattr(evaluate_module, "run_episode", counted)
    first = evaluate(todo[:3], tmp_path, checkpoint)
    with (tmp_path / RESULTS).open("a") as file:
        file.write('{"key": "cut o')
    assert len(calls) == 3
    rows = evaluate(todo[:3], tmp_path, checkpoint)
    assert rows == first
    assert len(calls) == 3
    assert all(row["inferences"] == 3 and not row["success"] for row in rows)
    again = evaluate(todo[:1], tmp_path / "again", checkpoint)
    assert again == rows[:1]


def test_one_worker_computes_as_many_do(checkpoint, tmp_path):
    """In float32 a sum depends on how many threads share it, so every process takes one."""
    import torch

    todo = jobs([Setting(denoise_steps=1, max_steps=12)], ["pick_red"], [0, 1])
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        runner = evaluate_module.ArmRunner(checkpoint)
        assert torch.get_num_threads() == 1
        runner.close()
        alone = evaluate(todo, tmp_path / "1", checkpoint)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert evaluate(todo, tmp_path / "2", checkpoint, workers=2) == alone


def test_what_a_worker_cannot_do_is_said_as_by_one(tmp_path):
    todo = jobs([Setting()], ["pick_red"], [0, 1])
    with pytest.raises(ValueError, match="nowhere"):
        evaluate(todo, tmp_path, str(tmp_path / "nowhere"), workers=2)


def test_wrong_prompts_are_crossed_with_tasks():
    got = jobs([Setting()], ["pick_red", "push_blue"], [7], wrong_prompts=True)
    assert {(j.task, j.prompted) for j in got} == {
        (a, b) for a in ("pick_red", "push_blue") for b in ("pick_red", "pick_green", "push_blue")
    }
    assert len({j.key for j in got}) == 6


def test_rates_and_paired_comparison():
    low, high = Rate(190, 200).interval
    assert (low, high) == pytest.approx((0.9104, 0.9726), abs=1e-3)
    assert np.isnan(Rate(0, 0).rate)
    assert mcnemar([True] * 10, [True] * 10) == 1.0
    assert mcnemar([True] * 8 + [False], [False] * 8 + [False]) == pytest.approx(2 / 256)


def row(setting, success, done="pick_red"):
    from dataclasses import asdict

    return {
        **asdict(setting),
        "seed": 0,
        "task": "pick_red",
        "prompted": "pick_red",
        "done": done,
        "success": success,
        "steps": 30,
        "inferences": 4,
        "fresh": 2,
        "seam_max": 0.2,
        "seam_mean": 0.1,
        "kick_mean": 0.0,
    }


def test_summary_counts_successes_and_unasked_tasks():
    rows = [row(Setting(), True), row(Setting(), False, "push_blue"), row(Setting(replan=4), True)]
    first, second = summarize(rows)
    assert (first["episodes"], first["success"], first["unasked_tasks_done"]) == (2, 0.5, 1)
    assert first["fresh_share"] == 0.5
    assert second["replan"] == 4
    assert "| replan=4 | pick_red | same | 1 | 1.000 |" in markdown([second])


def test_command_writes_tables_plots_and_gif(checkpoint, tmp_path, capsys):
    words = f"eval --checkpoint {checkpoint} --out {tmp_path} --tasks pick_red --seeds 0:1"
    assert main([*words.split(), "--steps", "1,2", "--max-steps", "8", "--gif", "0"]) == 0
    assert "denoise_steps=1" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "summary.json").read_text())) == 2
    assert (tmp_path / "results.csv").read_text().count("\n") == 3
    assert (tmp_path / "success_steps.png").stat().st_size > 1000
    with Image.open(tmp_path / "pick_red-0-failed.gif") as gif:
        assert gif.n_frames == 8


def test_a_directory_holds_what_the_last_run_asked_for(checkpoint, tmp_path, capsys):
    words = f"eval --checkpoint {checkpoint} --out {tmp_path} --tasks pick_red --seeds 0:1"
    many = [*words.split(), "--max-steps", "3", "--steps", "1,2", "--gif", "0"]
    (tmp_path / "pick_red-0-done.gif").touch()  # of a better policy
    assert main(many) == 0
    assert "kept" not in capsys.readouterr().err
    assert {p.name for p in tmp_path.glob("*.gif")} == {"pick_red-0-failed.gif"}
    plots = {"success_steps.png", "success_latency.png"}
    assert {p.name for p in tmp_path.glob("*.png")} == plots
    assert (tmp_path / "paired.json").is_file()
    assert main([*words.split(), "--max-steps", "3", "--steps", "2"]) == 0
    said = "1 of 1 episodes are kept; 1 others there belong to other options and are left out"
    assert said in capsys.readouterr().err
    assert not list(tmp_path.glob("*.png"))
    assert not (tmp_path / "paired.json").exists()
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--tasks dance", "'dance'; accepted: pick_red"),
        ("--tasks ,", "--tasks ','; accepted: words"),
        ("--chunking wild", "'wild'; accepted: naive"),
        ("--seeds 5:2", "--seeds '5:2'; accepted: FIRST:END"),
        ("--seeds=", "--seeds ''; accepted: FIRST:END or a list"),
        ("--ros --rate=", "--rate ''; accepted: numbers"),
        ("--seeds a:b", "--seeds 'a:b'; accepted: FIRST:END"),
        ("--seeds 0:999999999999", "up to 1000000"),
        ("--seeds 1,x", "--seeds '1,x'; accepted: FIRST:END or a list"),
        ("--gif x", "--gif 'x'; accepted: FIRST:END or a list"),
        ("--steps x", "--steps 'x'; accepted: whole numbers"),
        ("--steps 0", "denoise_steps 0; accepted: 1 to 1000"),
        ("--steps ,", "--steps ','"),
        ("--drop-wrist nan", "drop_wrist nan; accepted: 0 to 1"),
        ("--max-steps 161", "max_steps 161; accepted: 1 to 160"),
        ("--kv-reuse never", "'never'; accepted: a number"),
        ("--backend gpu", "'gpu'; accepted: auto, eager"),
        ("--precision fp4", "'fp4'; accepted: auto, fp32"),
        ("--engines cuda/fake-fp8", "fake-fp8 needs backend eager, not cuda"),
        ("--engines eager", "--engines eager; accepted: BACKEND/PRECISION"),
        ("--engines eager/fp32 --backend cuda", "takes the place of"),
        ("--workers 0 --checkpoint random:tiny", "--workers 0; accepted: a number from 1"),
        ("--rate 3", "--rate needs --ros"),
        ("--checkpoint none", "none: no such file"),
    ],
)
def test_bad_options_are_named_and_nothing_is_written(words, said, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["eval", "--out", str(out), "--renderer", "ray", *words.split()]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not out.exists()


def test_pictures_of_rays_and_of_opengl_are_not_mixed(checkpoint, tmp_path, capsys, monkeypatch):
    """Without OpenGL it goes on, and says so; with it, the coarse results are not taken."""

    def missing(model, backend):
        raise ImportError(f"no {backend} here")

    words = f"eval --checkpoint {checkpoint} --out {tmp_path} --tasks pick_red --seeds 0:1"
    short = [*words.split(), "--steps", "1", "--max-steps", "2"]
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    with monkeypatch.context() as patch:
        patch.setattr("pi05_ros.sim.arm.render.GlRenderer", missing)
        assert main(short) == 0
    assert "OpenGL is missing, coarse images" in capsys.readouterr().err
    assert main(short) == 2
    assert "holds results of pictures ray, not OpenGL" in capsys.readouterr().err


def test_jobs_are_told_apart_by_all_their_parts():
    base = EpisodeJob(Setting(), "pick_red", "pick_red", 1)
    assert base.key != EpisodeJob(Setting(replan=4), "pick_red", "pick_red", 1).key
    assert base.key != EpisodeJob(Setting(), "pick_red", "push_blue", 1).key


def test_joint_steps_are_told_apart_by_where_they_are():
    from pi05_ros.sim.evaluation.episode import _steps

    commands = [np.full(7, value) for value in (0.0, 0.1, 0.1, 0.5)]
    assert _steps(commands) == pytest.approx([0.1, 0.0, 0.4])
    assert _steps(commands[:1]).size == 0


def test_every_policy_sees_the_same_scenes_first(checkpoint):
    runner = evaluate_module.ArmRunner(checkpoint)
    job = EpisodeJob(Setting(denoise_steps=1, max_steps=12), "pick_red", "pick_red", 3)
    policy = runner.policies.get(job.setting)
    seen = []
    infer = policy.infer
    policy.infer = lambda obs, **options: seen.append(obs) or infer(obs, **options)
    first, again = runner.run(job), runner.run(job)
    assert [obs.prompt for obs in seen] == [task.prompt for task in evaluate_module.TASKS.values()]
    assert first == again
    assert len(first.infer_ms) == first.inferences
    assert first.boundary_step_max >= first.boundary_step_mean > 0
    runner.close()
