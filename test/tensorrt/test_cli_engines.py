"""`pi05 build | check` of engines from the command line, on the fake TensorRT."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pi05_ros.backends import BackendError, Precision, tensorrt
from pi05_ros.backends.export.artifacts import find_calibration, find_golden
from pi05_ros.backends.files import sha256_file
from pi05_ros.backends.quantization.samples import load_samples, save_samples
from pi05_ros.backends.tensorrt.flavor import TENSORRT
from pi05_ros.cli.engines import build as build_command
from pi05_ros.cli.engines import engine_options
from pi05_ros.cli.main import main
from pi05_ros.policy import Policy
from pi05_ros.request_options import filled
from pi05_ros.workflows.build_engines import build_attempts
from pi05_ros.workflows.engine_requests import BuildRequest

CHECKPOINT = "random:tiny"


def test_build_checks_and_tries_a_lower_level(
    install: Callable[..., Any], cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    faults = install()
    words = ["build", CHECKPOINT, "--cache", str(cache), "--steps", "4"]
    faults.perturb = 0.3  # kernels of optimization level 3 are wrong
    code = main(words)
    out, log = capsys.readouterr()
    assert "optimization level 3" in out
    assert "optimization level 2" in out
    assert "REFUSED" in out
    assert "trtexec --onnx=" in log
    reports = sorted(cache.rglob("engines/*/check.json"))
    verdicts = {json.loads(path.read_text())["verdict"] for path in reports}
    assert "refuse" in verdicts
    assert code == (0 if "pass" in verdicts else 1)
    assert all((path.parent / "check.md").is_file() for path in reports)
    assert main(["check", CHECKPOINT, "--cache", str(cache), "--steps", "4"]) == code
    assert main([*words, "--no-check", "--optimization-level", "1"]) == 0
    assert "nothing will load these engines" in capsys.readouterr().out
    assert main([*words, "--optimization-level", "9"]) == 2


def test_engines_that_do_not_run_are_built_at_a_lower_level(
    install: Callable[..., Any],
    cache: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As reported of Thor: kernels of a norm that fail from level 3 on."""
    from pi05_ros.backends.verification import verify

    easy = verify.Thresholds(actions_mean_abs=1.0)
    monkeypatch.setattr(verify, "Thresholds", lambda: easy)
    root = tmp_path / "cache"
    shutil.copytree(cache, root)
    shutil.rmtree(next(root.iterdir()) / "engines", ignore_errors=True)
    faults = install()
    faults.execute_fails_from_level = 3
    assert main(["build", CHECKPOINT, "--cache", str(root), "--steps", "1"]) == 0
    out = capsys.readouterr().out
    assert "REFUSED: vision.plan failed to run: ERROR: FAILED_EXECUTION" in out
    assert "NOTE: these engines are a second choice, optimization level 2" in out
    assert len(list(root.rglob("key.json"))) == 2
    assert len(list(root.rglob("check.json"))) == 1
    faults.execute_fails_from_level = 0
    assert main(["check", CHECKPOINT, "--cache", str(root), "--steps", "1"]) == 1
    assert not list(root.rglob("check.json"))  # refused is refused, whatever was found before


def test_prefill_goes_to_fp16_when_no_level_helps(
    install: Callable[..., Any],
    cache: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from pi05_ros.backends.verification import verify

    # Random weights have large actions; only their mean error is judged apart from this.
    easy = verify.Thresholds(actions_mean_abs=1.0)
    monkeypatch.setattr(verify, "Thresholds", lambda: easy)
    faults = install()
    faults.perturb_fp8_prefill = 0.3
    assert main(["build", CHECKPOINT, "--cache", str(cache), "--steps", "2"]) == 0
    out = capsys.readouterr().out
    assert out.count("REFUSED: worst cosine") == 2
    retries = [line for line in out.splitlines() if line.startswith("RETRY, ")]
    assert retries == [
        "RETRY, optimization level 2: 3 was refused by its check",
        "RETRY, prefill in FP16: quantized it was refused by its check at level 3 and 2",
    ]
    assert "NOTE: these engines are a second choice, prefill in FP16" in out
    policy = Policy.load(CHECKPOINT, backend="tensorrt", backend_options={"cache": cache})
    assert policy.info.precision == Precision("fp16", "fp16", "fp8")
    assert "second choice, prefill in FP16" in policy.info.backend_reason
    policy.close()
    # The report says so, also after a check by hand.
    assert main(["check", CHECKPOINT, "--cache", str(cache), "--steps", "2"]) == 0
    newest = max(cache.rglob("check.md"), key=lambda path: path.stat().st_mtime)
    assert "- second choice: prefill in FP16: quantized it was refused" in newest.read_text()
    assert "passed" in newest.read_text().splitlines()[0]


def test_int8_for_gpus_without_fp8(
    install: Callable[..., Any],
    cache: Path,
    observations: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Built, shown by its INT8 kernels, compared with the simulation it was exported from."""
    from pi05_ros.backends.tensorrt import binding
    from pi05_ros.backends.verification import verify

    easy = verify.Thresholds(actions_mean_abs=1.0)
    monkeypatch.setattr(verify, "Thresholds", lambda: easy)
    folder = tmp_path / "int8"
    quantize = ["quantize", CHECKPOINT, "--cache", str(cache), "--steps", "2"]
    quantize += ["--observations", str(observations), "--preset", "int8_smoothquant"]
    assert main([*quantize, "--out", str(folder)]) == 0
    install()
    asked: list[bool] = []
    cpu = binding.require_gpu

    def no_fp8(*, fp8: bool, near: torch.device | None = None) -> torch.device:
        asked.append(fp8)
        return cpu(fp8=fp8, near=near)

    monkeypatch.setattr(tensorrt, "require_gpu", no_fp8)
    runtime = importlib.import_module("pi05_ros.backends.tensorrt.runtime")
    fake = runtime.PlanFile.layers_json
    monkeypatch.setattr(
        runtime.PlanFile, "layers_json", lambda plan: fake(plan).replace("FP8", "Int8")
    )
    root = tmp_path / "engines"
    words = ["build", CHECKPOINT, "--cache", str(root), "--calibration", str(folder)]
    assert main([*words, "--steps", "2"]) == 0
    assert not any(asked)
    (report,) = root.rglob("check.json")
    facts = json.loads(report.read_text())["inspector"]
    assert facts["prefill"]["quantized"] == facts["prefill"]["expected"] == 16
    options = {"cache": root}
    policy = Policy.load(CHECKPOINT, backend="tensorrt", backend_options=options)
    assert "(int8_smoothquant) with a passing report" in policy.info.backend_reason
    policy.close()
    with pytest.raises(BackendError, match="run prefill in int8, asked for is fp16"):
        Policy.load(CHECKPOINT, backend="tensorrt", precision="fp16", backend_options=options)
    # The same graphs with kernels of another type are not accepted.
    monkeypatch.setattr(runtime.PlanFile, "layers_json", fake)
    assert main([*words, "--steps", "2", "--optimization-level", "2", "--prefill", "fp8"]) == 1


def test_check_takes_the_calibration_of_the_engines_not_the_newest(
    install: Callable[..., Any],
    cache: Path,
    observations: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = tmp_path / "cache"
    shutil.copytree(cache, root)
    shutil.rmtree(next(root.iterdir()) / "engines", ignore_errors=True)
    install()
    words = [CHECKPOINT, "--cache", str(root), "--steps", "2"]
    first = next(root.rglob("calibration.json")).parent
    assert main(["build", *words, "--calibration", str(first), "--no-check"]) == 0
    quantize = ["quantize", *words, "--observations", str(observations), "--samples", "8"]
    assert main([*quantize, "--preset", "fp8_tensor"]) == 0
    main(["check", *words])
    (report,) = root.rglob("check.json")
    ratios = [row["ratio"] for row in json.loads(report.read_text())["layers"]]
    assert all(0.9 < ratio < 1.1 for ratio in ratios), ratios
    shutil.rmtree(first)
    capsys.readouterr()
    assert main(["check", *words]) == 2
    assert "is needed and there is none" in capsys.readouterr().err
    (report.parent / "layers_vision.json").write_text("{")
    assert main(["check", *words]) == 2
    assert "layers_vision.json cannot be read" in capsys.readouterr().err
    key = report.with_name("key.json")
    stage = Path(json.loads(key.read_text())["export"]) / "prefill.onnx"
    stage.rename(stage.with_name("elsewhere"))
    assert main(["check", *words]) == 2
    assert "prefill.onnx is not what was exported" in capsys.readouterr().err
    stage.with_name("elsewhere").rename(stage)
    graphs = Path(json.loads(key.read_text())["export"]) / "export.json"
    content = json.loads(graphs.read_text())
    graphs.write_text(json.dumps({**content, "graph_hash": "other"}))
    assert main(["check", *words]) == 2
    assert "are not those of the engines any more" in capsys.readouterr().err
    content = json.loads(key.read_text())
    key.write_text(json.dumps({**content, "export": None}))
    assert main(["check", *words]) == 2
    assert "key.json is damaged" in capsys.readouterr().err


def test_what_proves_too_little_is_refused_before_the_build(
    install: Callable[..., Any],
    cache: Path,
    observations: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    install()
    few = [str(observations / f"{index:03d}.safetensors") for index in range(7)]
    words = ["build", CHECKPOINT, "--cache", str(tmp_path), "--precision", "fp16"]
    made_up = tmp_path / "golden.safetensors"
    samples, _ = load_samples(next(cache.rglob("golden.safetensors")))
    save_samples(made_up, [replace(samples[0], synthetic=True), *samples[1:]])
    for extra, message in (
        ([], "no observations to check with"),
        (["--observations", *few], "7 observations are too few; at least 8"),
        (["--observations", str(made_up)], "1 of 10 observations are synthetic"),
    ):
        assert main([*words, *extra]) == 2
        assert message in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.plan"))


def test_dry_runs_are_marked_wherever_their_engines_go(
    install: Callable[..., Any],
    tmp_path: Path,
    observations: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from pi05_ros.backends.verification import verify

    easy = verify.Thresholds(actions_mean_abs=1.0)
    monkeypatch.setattr(verify, "Thresholds", lambda: easy)
    install()
    words = [CHECKPOINT, "--cache", str(tmp_path), "--steps", "2"]
    recorded = ["--observations", str(observations)]
    options = {"cache": tmp_path}
    plain = [*words, "--precision", "fp16"]

    def told() -> tuple[bool, bool, bool]:
        (path,) = tmp_path.rglob("check.json")
        content = json.loads(path.read_text())
        assert len(content["golden"]) == 64
        policy = Policy.load(CHECKPOINT, backend="tensorrt", backend_options=options)
        reason = policy.info.backend_reason
        policy.close()
        text = path.with_name("check.md").read_text()
        return content["dry_run"], "DRY RUN" in reason, "- dry run: " in text

    assert main(["build", *plain, "--allow-synthetic", "--samples", "8"]) == 0
    assert told() == (True, True, True)
    assert main(["check", *words, *recorded]) == 0
    assert told() == (False, False, False)
    shutil.rmtree(next(tmp_path.glob("sha256_*")) / "engines")
    # Ranges of made-up observations, checked on recorded ones.
    quantize = ["quantize", *words, "--samples", "8"]
    assert main([*quantize, "--allow-synthetic"]) == 0
    assert main(["build", *words]) == 2
    assert "--allow-synthetic" in capsys.readouterr().err
    assert main(["build", *words, *recorded]) == 0
    assert told() == (True, True, True)
    # Recorded ones are taken first, though older.
    assert main([*quantize, *recorded]) == 0
    made_up, real = sorted(tmp_path.rglob("calibration.json"), key=lambda p: p.stat().st_mtime)
    os.utime(real, (0, 0))
    weights = json.loads(real.read_text())["weights"]
    assert find_calibration(weights, None, tmp_path).info["synthetic"] is False
    assert find_golden(weights, None, tmp_path).parent == real.parent
    digest = json.loads(made_up.read_text())["digest"]
    assert find_golden(weights, None, tmp_path, digest).parent == made_up.parent


def test_a_report_is_about_the_plans_that_ran(
    install: Callable[..., Any],
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another build may replace the plans while they are checked."""
    from pi05_ros.backends.tensorrt.engine_report import require_verified
    from pi05_ros.backends.tensorrt.engine_set import UnverifiedEngineError, open_set

    root = tmp_path / "cache"
    shutil.copytree(cache, root)
    shutil.rmtree(next(root.iterdir()) / "engines", ignore_errors=True)
    install()
    words = [CHECKPOINT, "--cache", str(root), "--steps", "1"]
    assert main(["build", *words, "--no-check"]) == 0
    (key,) = root.rglob("key.json")

    def replace_plan(done: int, total: int) -> None:
        plan, content = key.with_name("prefill.plan"), json.loads(key.read_text())
        plan.write_bytes(plan.read_bytes() + b" ")
        content["plans"]["prefill"] = sha256_file(plan)
        key.write_text(json.dumps(content))

    monkeypatch.setattr(engine_options, "progress", lambda what: replace_plan)
    main(["check", *words])
    with pytest.raises(UnverifiedEngineError, match="not about these plans"):
        require_verified(open_set(key.parent), torch.device("cpu"))


def test_the_gpu_that_was_asked_for_is_the_one_that_is_judged(
    install: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    install()
    seen: list[Any] = []

    def require_gpu(*, fp8: bool, near: torch.device | None = None) -> torch.device:
        seen.append(near)
        raise BackendError("stop here")

    monkeypatch.setattr(tensorrt, "require_gpu", require_gpu)
    for word in ("auto", "cpu", "cuda", "cuda:1", "gpu"):
        assert main(["build", CHECKPOINT, "--device", word]) == 2
    assert seen == [None, None, torch.device("cuda"), torch.device("cuda", 1), None]


def test_engines_that_are_not_there(
    install: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install()
    folder = tmp_path / "engines"
    assert main(["check", CHECKPOINT, "--engine", str(folder)]) == 2
    assert "is not a folder with engines" in capsys.readouterr().err
    assert not folder.exists()
    assert main(["check", CHECKPOINT, "--engine", str(folder), "--backend", "onnx"]) == 2
    assert "--engine is for --backend tensorrt" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], [(3, None), (2, None), (2, "fp16")]),
        (["--optimization-level", "4"], [(4, None), (4, "fp16")]),
        (["--prefill", "fp8"], [(3, "fp8"), (2, "fp8")]),
        (["--prefill", "fp16"], [(3, "fp16"), (2, "fp16")]),
        (["--precision", "fp16"], [(3, None), (2, None)]),
    ],
)
def test_what_the_user_fixed_stays_fixed(words: list[str], expected: list[Any]) -> None:
    parser = argparse.ArgumentParser()
    build_command.add_arguments(parser)
    request = filled(BuildRequest, parser.parse_args([CHECKPOINT, *words]))
    attempts = build_attempts(request, TENSORRT)
    assert [(attempt.level, attempt.prefill) for attempt in attempts] == expected
    assert [bool(attempt.note) for attempt in attempts] == [False] + [True] * (len(attempts) - 1)
