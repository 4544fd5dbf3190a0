"""Tables and image of `pi05 bench model`, from made-up measurements."""

from __future__ import annotations

import dataclasses
import random

from PIL import Image

from pi05_ros.backends.workload import MIXES
from pi05_ros.bench import model_report
from pi05_ros.bench.model import Timing


def result(steps):
    generator = random.Random(steps)
    stages = {"preprocess": 0.03, "vision": 1.5, "prefill": 2.6, "denoise": 0.42 * steps}
    whole = sum(stages.values())
    samples = [whole + abs(generator.gauss(0, 0.01)) for _ in range(200)]
    times = {name: dataclasses.asdict(Timing.of([value] * 9)) for name, value in stages.items()}
    times["graph"] = times["total"] = dataclasses.asdict(Timing.of(samples))
    return {
        "workload": {"views": 2, "tokens": 20, "horizon": 50, "steps": steps},
        "times_ms": times,
        "floor_ms": {"graph": 3.0, "vision": 0.5, "prefill": 1.2, "denoise": 0.1 * steps},
        "histogram": samples,
    }


REPORT = {
    "device": "a GPU",
    "torch": "2",
    "weights": "random",
    "precision": dict(zip(("vision", "prefill", "denoise"), MIXES["fp8"], strict=True)),
    "tuning": "default.json",
    "runs": 200,
    "ready_s": 1.0,
    "peak_memory_gb": 4.0,
    "results": [result(n) for n in (1, 10)],
}


def test_markdown_has_a_row_per_stage_with_its_share_of_the_floor():
    text = model_report.markdown(REPORT)
    assert text.count("| denoise |") == 2
    assert "| prefill | 2.600 | 2.600 | 0.000 | 2.600 | 1.20 | 46 % |" in text
    assert "denoise guided" not in text  # was not measured


def test_the_plot_is_a_picture_even_of_equal_times(tmp_path):
    model_report.plot(REPORT, tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as picture:
        assert picture.width > picture.height > 300
    still = {**result(1), "histogram": [4.0] * 200}
    model_report.plot({**REPORT, "results": [still]}, tmp_path / "still.png")
    assert (tmp_path / "still.png").stat().st_size > 5000
