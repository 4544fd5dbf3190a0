"""`pi05 bench`: dispatch, and a short run of the node benchmark."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pi05_ros.backends import BackendError
from pi05_ros.bench.bench_requests import ModelBenchRequest
from pi05_ros.cli.main import main


def test_node_benchmark_reports_its_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--duration", "2", "--width", "64", "--height", "48", "--out", str(tmp_path)]
    assert main(["bench", "node", *options, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["chunks"] > 5
    assert report["overhead_ms"]["p50"] > 0
    assert set(report["delivered"]) == {"base_camera", "wrist_camera", "joint_states"}
    assert report["cpu_share"] > 0
    assert len(report["limits"]) == 4


def test_grid_compares_the_node_with_its_bare_call(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loads = "64x48@10,1*64x48@10jpeg"
    words = f"--grid {loads} --rates 5 --seconds 2 --direct-seconds 0.5 --pretend-ms 30"
    words = f"{words} --out {tmp_path}"
    assert main(["bench", "node", *words.split(), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [cell["cameras"] for cell in report["cells"]] == loads.split(",")
    for cell in report["cells"]:
        assert cell["rate_hz"] == 5.0
        assert 0 < cell["chunks"] <= cell["asked"] + 1
        assert cell["newest_image_to_chunk_ms"]["p50"] > cell["inference_ms"]["p50"] > 0
        assert cell["direct_p50_ms"] >= 30
        assert cell["cpu_share"] > 0
        parts = cell["parts_ms"]
        assert list(parts) == ["arrive", "wait", "convert", "answer", "leave"]
        assert 0 < sum(parts.values()) < cell["newest_image_to_chunk_ms"]["max"]
    assert [start["configured_s"] > 0 for start in report["starts"]] == [True, True]
    assert report["engine"]["backend"] == "eager"
    table = (tmp_path / "grid.md").read_text()
    assert "| 64x48@10 | 5 |" in table
    assert "1 compressed cameras: configured" in table


def test_unknown_benchmark() -> None:
    with pytest.raises(SystemExit) as caught:
        main(["bench", "coffee"])
    assert caught.value.code == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("node --duration 0", "accepted: 2 to"),
        ("node --cameras 0", "--cameras is 0; accepted: 1 to 2 for robot sim_arm"),
        ("node --cameras 9", "--cameras is 9; accepted: 1 to 2"),
        ("node --camera-hz 0", "--camera-hz is 0.0; accepted: 0.1 to 1000"),
        ("node --joint-hz nan", "--joint-hz is nan; accepted: 0.1 to"),
        ("node --grid 640", "--grid '640'; accepted: WxH@HZ"),
        ("node --grid 0*64x48@10", "--cameras is 0; accepted: 1 to 2 for robot sim_arm"),
        ("node --grid 64x48@10 --direct-seconds 0", "--direct-seconds is 0.0; accepted: 0.2"),
        ("node --grid 64x48@10 --pretend-ms 5 --isolation process", "with --isolation thread"),
        ("node --grid 64x48@0", "accepted: up to 4096 pixels a side, 0.1 to 1000 Hz"),
        ("node --grid ,", "--grid and --rates name one setting at least"),
        ("node --grid 64x48@10 --rates fast", "--rates 'fast'; accepted: numbers"),
        ("node --grid 64x48@10 --rates 900", "--rates 900; accepted: 0.1 to 200 Hz"),
        ("node --grid 64x48@10 --backend gpu", "backend"),
        ("node --width 0", "--width is 0; accepted: 1 to"),
    ],
)
def test_bad_options(words: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *words.split()]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    ["--image 640", "--image 0x3", "--image axb", "--runs 0", "--steps 0", "--tokens x"],
)
def test_the_model_benchmark_checks_its_numbers(
    words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "model", *words.split()])
    assert words.split()[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "size"), [([], (224, 224)), (["--image", "640x480"], (480, 640))]
)
def test_frame_sizes_are_width_times_height(
    words: list[str], size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def measure_model(request: object) -> dict[str, object]:
        seen.append(request)
        raise BackendError("stop here")

    monkeypatch.setattr("pi05_ros.bench.model.measure_model", measure_model)
    assert main(["bench", "model", *words]) == 2
    assert seen == [ModelBenchRequest(image=size)]
