"""Paired comparison, Pareto front, plots and latencies of an evaluation."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest

from pi05_ros.sim.evaluation import latency, paired, success_plots
from pi05_ros.sim.evaluation.episode import Result
from pi05_ros.sim.evaluation.evaluate import EpisodeJob
from pi05_ros.sim.evaluation.setting import Setting
from pi05_ros.sim.evaluation.success_rates import summarize

FP32, FP8 = Setting(), Setting(backend="cuda", precision="auto")


def row(setting, seed, success, task="pick_red"):
    result = Result(
        seed=seed, task=task, prompted=task, done="", success=success, steps=9, inferences=4,
        fresh=2, seam_max=0.2, seam_mean=0.1, kick_mean=0.0, boundary_step_max=0.3,
        boundary_step_mean=0.2, inner_step_mean=0.1,
    )  # fmt: skip
    return {**asdict(setting), **result.row()}


def rows(setting, outcomes):
    return [row(setting, seed, bool(success)) for seed, success in enumerate(outcomes)]


def test_settings_are_compared_on_the_episodes_they_share():
    first = rows(FP32, [1] * 80 + [0] * 20)
    second = rows(FP8, [1] * 77 + [0] * 3 + [1] + [0] * 19 + [1] * 5)
    same, other = paired.compare(first + second)
    assert (same.gained, same.lost, same.difference, same.p) == (0, 0, 0, 1)
    assert (same.low95, same.high95) == (0, 0)  # no doubt about itself
    assert (other.pairs, other.gained, other.lost) == (100, 1, 3)
    assert other.difference == pytest.approx(-2.0)
    assert other.low95 == pytest.approx(100 * (-2 - 1.96 * np.sqrt(5 - 4 / 102)) / 102, abs=0.01)
    assert other.p == pytest.approx(0.625)
    assert other.fresh_share == 0.5
    text = paired.markdown([same, other])
    assert "| backend=cuda precision=auto | 100 | 78.0 | 0.50 | -2.0 |" in text


def test_intervals_follow_wald_where_there_are_pairs_enough():
    other = paired.compare(rows(FP32, [1] * 60 + [0] * 40) + rows(FP8, [0] * 12 + [1] * 88))[1]
    assert (other.gained, other.lost) == (40, 12)
    half = 196 * np.sqrt(52 - 28**2 / 100) / 100
    assert (other.low95, other.high95) == pytest.approx((28 - half, 28 + half), abs=0.01)


@pytest.mark.parametrize(("first", "second"), [([1], [1]), ([1], [0]), ([1] * 12, [1] * 12)])
def test_few_or_equal_pairs_do_not_make_certainty(first, second):
    other = paired.compare(rows(FP32, first) + rows(FP8, second))[1]
    assert other.p == 1.0
    assert -100 <= other.low95 < other.difference + 1e-9 < other.high95 + 1e-9 <= 100 + 1e-9
    assert other.high95 - other.low95 > 20


def test_wrong_prompts_do_not_count_as_successes():
    wrong = [{**row(FP8, 1, False), "prompted": "push_blue"}]
    other = paired.compare([*rows(FP32, [1, 1]), *rows(FP8, [1]), *wrong])[1]
    assert (other.pairs, other.success) == (1, 1.0)


def test_settings_without_common_episodes_are_not_judged():
    other = paired.compare([row(FP32, 0, True), row(FP8, 1, True)])[1]
    assert (other.pairs, other.p) == (0, 1.0)
    assert np.isnan(other.difference)


def point(latency_ms, success):
    return success_plots.Point(
        values={}, rate=success_plots.Rate(success, 100), seam_mean=0.0, fresh_share=1.0,
        latency_ms=latency_ms,
    )  # fmt: skip


def test_the_front_holds_what_nothing_beats():
    points = [point(5, 90), point(1, 80), point(3, 80), point(9, 88), point(2, 85), point(5, 89)]
    front = [(p.latency_ms, p.rate.successes) for p in success_plots.front(points)]
    assert front == [(1, 80), (2, 85), (5, 90)]


def test_points_hold_all_tasks_but_no_wrong_prompts():
    given = [row(FP32, k, k < 3, task) for task in ("pick_red", "push_blue") for k in range(5)]
    given.append({**given[0], "prompted": "push_blue", "success": False})
    (found,) = success_plots.points(summarize(given))
    assert (found.rate.successes, found.rate.episodes) == (6, 10)


def test_everything_that_varies_is_drawn(tmp_path):
    settings = [
        FP32,
        Setting(denoise_steps=3),
        Setting(delay_ms=200),
        Setting(delay_ms=200, chunking="rtc-trained"),
        Setting(kv_reuse="dynamic"),
        Setting(drop_wrist=0.5),
    ]
    summary = summarize([r for setting in settings for r in rows(setting, [1, 1, 0])])
    assert "success_latency.png" not in {p.name for p in success_plots.draw(summary, tmp_path)}
    for index, entry in enumerate(summary):
        entry["latency_ms"] = 1.0 + 10 * index
    made = {path.name for path in success_plots.draw(summary, tmp_path)}
    assert made == {
        "success_latency.png", "success_delay.png", "seam_delay.png", "success_steps.png",
        "success_kv_reuse.png", "success_drop_wrist.png",
    }  # fmt: skip
    assert all((tmp_path / name).stat().st_size > 3000 for name in made)
    assert success_plots.draw(summary[:1], tmp_path) == []


class FakeRunner:
    """Takes 2 ms in its first episode and 1 ms in later ones."""

    def __init__(self):
        self.asked = []
        self.closed = False

    def run(self, job, frames=None):
        self.asked.append(job)
        values = row(job.setting, 0, True)
        values = {name: values[name] for name in Result.__dataclass_fields__ if name in values}
        times = (2.0,) if len(self.asked) % 2 else (1.0, 1.0, 4.0)
        return Result(**values, infer_ms=times)

    def close(self):
        self.closed = True


def test_each_engine_is_timed_once_and_remembered(tmp_path):
    jobs = [
        EpisodeJob(setting, "pick_red", "pick_red", seed)
        for setting in (FP32, Setting(delay_ms=100), Setting(denoise_steps=2))
        for seed in (0, 1)
    ]
    runner = FakeRunner()
    times = latency.measure(jobs, tmp_path, lambda: runner)
    assert len(runner.asked) == 4
    assert runner.closed
    assert times[latency.engine_key(asdict(FP32))]["mean_ms"] == 2.0
    assert times[latency.engine_key(asdict(FP32))]["p50_ms"] == 1.0
    again = latency.measure(jobs, tmp_path, lambda: pytest.fail("nothing is missing"))
    assert again == times
    assert json.loads((tmp_path / latency.FILE).read_text()) == times
