"""`pi05 quantize | export | check` from the command line, without TensorRT."""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from pi05_ros.backends import BackendError
from pi05_ros.backends.export import graph_checks
from pi05_ros.backends.quantization.calibration import CalibrationError
from pi05_ros.backends.quantization.samples import load_samples, save_samples
from pi05_ros.cli.main import main
from pi05_ros.policy import Observation, Policy
from pi05_ros.workflows.observations import load_observation, save_observation, spread

CHECKPOINT = "random:tiny"
BAGS = Path(__file__).resolve().parents[1] / "replay" / "bags.py"


def test_quantize_keeps_ranges_samples_and_report(
    cache: Path, observations: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = next(cache.rglob("calibration.json")).parent
    content = json.loads((folder / "calibration.json").read_text())
    assert len(content["samples"]) == 10
    assert content["synthetic"] is False
    assert content["samples"][0]["name"].endswith("000.safetensors")
    samples, _ = load_samples(folder / "golden.safetensors")
    assert samples[0].images.shape == (2, 3, 56, 56)
    assert not samples[0].synthetic
    # A golden set is accepted as observations too.
    words = ["quantize", CHECKPOINT, "--steps", "1", "--samples", "8", "--preset", "w8a16"]
    golden = str(folder / "golden.safetensors")
    assert main([*words, "--observations", golden, "--out", str(folder / "again")]) == 0
    said = capsys.readouterr().out
    assert "8 observations" in said
    assert "nan" not in said  # inputs are not quantized: nothing is beyond a range


def test_samples_are_what_the_policy_gives_the_model(cache: Path, observations: Path) -> None:
    samples, _ = load_samples(next(cache.rglob("golden.safetensors")))
    policy = Policy.load(CHECKPOINT, backend="eager")
    seen: dict[str, Any] = {}
    inner = policy.engine.sample

    def sample(images: Any, tokens: Any, noise: Any, steps: int) -> Any:
        seen.update(tokens=tokens)
        return inner(images, tokens, noise, steps)

    policy.engine.sample = sample  # type: ignore[method-assign]
    policy.infer(load_observation(observations / "003.safetensors"))
    assert samples[3].tokens.tolist() == seen["tokens"].tolist()


def test_observations_come_from_a_bag(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("bags", BAGS)
    assert spec is not None
    assert spec.loader is not None
    bags = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bags)
    path = bags.write_bag(tmp_path / "bag", 2.0)
    words = ["quantize", CHECKPOINT, "--bag", str(path), "--samples", "9", "--steps", "1"]
    assert main([*words, "--out", str(tmp_path / "ranges")]) == 0
    samples, _ = load_samples(tmp_path / "ranges" / "golden.safetensors")
    assert len(samples) == 9
    assert len({sample.digest for sample in samples}) == 9
    assert not any(sample.synthetic for sample in samples)
    assert samples[0].images.shape[0] == 2
    capsys.readouterr()
    assert main([*words, "--map", "base_camera=/not/there"]) == 2
    assert "/not/there" in capsys.readouterr().err
    assert main([*words, "--map", "junk"]) == 2
    assert "'junk' is not NAME=TOPIC" in capsys.readouterr().err
    # A bag that nothing can be used of is not the same as none, and no reason for random images.
    assert main([*words, "--robot", "droid", "--allow-synthetic"]) == 2
    said = capsys.readouterr().err
    assert "gave no observation of robot 'droid'" in said
    assert "x joint_states missing" in said
    one = bags.write_bag(tmp_path / "one", 2.0, cameras=("base_camera",))
    words[words.index(str(path))] = str(one)
    assert main([*words, "--out", str(tmp_path / "ranges")]) == 0
    assert f"{one} has no wrist_camera" in capsys.readouterr().err


def test_refusals_are_one_line_and_exit_code_2(
    tmp_path: Path, observations: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["quantize", CHECKPOINT, "--cache", str(tmp_path)]
    few = [str(observations / f"{index:03d}.safetensors") for index in range(7)]
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"no")
    for extra, message in (
        ([], "no observations: give --observations or --bag"),
        (["--observations", *few], "7 observations are too few; at least 8"),
        (["--observations", str(broken)], "cannot be read"),
        (["--bag", str(tmp_path / "nothing")], "nothing"),
        (["--observations", str(tmp_path)], "broken.safetensors cannot be read"),
        (["--observations", str(observations.parent)], "holds no .safetensors files"),
        (["--observations", *few, "--map", "prompt=/p"], "--map names topics of --bag"),
        (["--observations", *few, "--cache", str(broken)], "is not a folder we may write into"),
    ):
        assert main([*words, *extra]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert len(error.strip().splitlines()) == 1
    assert main(["export", CHECKPOINT, "--cache", str(tmp_path)]) == 2
    assert (
        "make one from recorded observations with: pi05 calibrate --for tensorrt"
        in capsys.readouterr().err
    )
    assert main(["check", CHECKPOINT, "--cache", str(tmp_path)]) == 2
    error = capsys.readouterr().err  # TensorRT for RTX is there on some platforms
    assert "tensorrt is not installed" in error or "no engines in" in error
    assert main(["build", "no/such/checkpoint", "--cache", str(tmp_path)]) == 2


@pytest.mark.parametrize(
    "words",
    [
        ["quantize", "--steps", "0"],
        ["quantize", "--samples", "-2"],
        ["quantize", "--views", "0"],
        ["check", "--max-prompt-tokens", "0"],
        ["export", "--full-steps", "0"],
    ],
)
def test_numbers_must_be_positive(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([words[0], CHECKPOINT, *words[1:]])
    assert caught.value.code == 2
    assert "a whole number from 1" in capsys.readouterr().err


def _stamp(tensors: dict[str, Any], metadata: dict[str, str]) -> None:
    metadata["stamp_ns"] = "noon"


def _short_state(tensors: dict[str, Any], metadata: dict[str, str]) -> None:
    tensors["state"] = np.zeros(3)


def _other_role(tensors: dict[str, Any], metadata: dict[str, str]) -> None:
    tensors["image.left"] = tensors.pop("image.base")


def _no_list(tensors: dict[str, Any], metadata: dict[str, str]) -> None:
    metadata["samples"] = "[3]"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_stamp, "stamp_ns is 'noon'"),
        (_short_state, "is not an observation of this robot: state is float64 [3]"),
        (_other_role, "is not an observation of this robot: camera 'left'"),
        (_no_list, "is not a set of samples"),
    ],
)
def test_bad_observations_are_named(
    change: Callable[[dict[str, Any], dict[str, str]], None],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    picture = np.zeros((8, 8, 3), np.uint8)
    tensors: dict[str, Any] = {"image.base": picture, "state": np.zeros(7)}
    metadata = {"stamp_ns": "1"}
    change(tensors, metadata)
    path = tmp_path / "bad.safetensors"
    save_file(tensors, path, metadata=metadata)
    assert main(["quantize", CHECKPOINT, "--observations", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"pi05 quantize: {path}")
    assert message in error


def test_samples_of_another_robot_or_checkpoint_are_refused(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples, _ = load_samples(next(cache.rglob("golden.safetensors")))
    path = tmp_path / "golden.safetensors"
    for change, message in (
        ({"noise": torch.zeros(50, 32)}, "noise [50, 32], needed is [10, 32]"),
        ({"images": samples[0].images[:, :, :40]}, "images [2, 3, 40, 56]; accepted: 1 to 2"),
        ({"images": samples[0].images * math.nan}, "not finite"),
        ({"tokens": samples[0].tokens + 5000}, "tokens outside the vocabulary of 512"),
        ({"tokens": samples[0].tokens[:0]}, "0 prompt tokens; accepted: 1 to 200"),
    ):
        save_samples(path, [replace(samples[0], **change), *samples[1:]])
        for command in (["quantize"], ["check", "--backend", "simulated"]):
            words = [*command, CHECKPOINT, "--cache", str(cache), "--observations", str(path)]
            assert main(words) == 2
            error = capsys.readouterr().err
            assert message in error
            assert "000.safetensors has" in error


def test_failed_export_leaves_nothing(
    cache: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "graphs"
    words = ["export", CHECKPOINT, "--cache", str(cache)]
    for extra, message in (
        (["--out", str(out), "--precision", "fp32", "--prefill", "fp16"], "fp8 or fp16, not fp32"),
        (["--full-steps", "2"], "--full-steps needs --out"),
    ):
        assert main([*words, *extra]) == 2
        assert message in capsys.readouterr().err
    real = graph_checks.check_graph

    def check_graph(path: Path, expected: Any) -> Any:
        if path.name == "prefill.onnx":
            raise graph_checks.GraphError("prefill.onnx breaks 1 rule(s)")
        return real(path, expected)

    with monkeypatch.context() as patch:
        patch.setattr(graph_checks, "check_graph", check_graph)
        graphs = [*words, "--out", str(out), "--max-prompt-tokens", "90"]  # none has it yet
        assert main(graphs) == 2
        assert "breaks 1 rule" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_altered_graphs_in_the_cache_are_exported_again(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [CHECKPOINT, "--cache", str(cache), "--precision", "fp16"]
    assert main(["export", *words]) == 0
    folder = Path(capsys.readouterr().out.split("written to ")[1].strip())
    data = folder / "prefill.onnx.data"
    whole = data.read_bytes()
    data.write_bytes(whole[:-1] + bytes([whole[-1] ^ 0x40]))
    main(["check", *words, "--backend", "onnx", "--steps", "1", "--out", str(tmp_path)])
    assert data.read_bytes() == whole
    (folder / "export.json").write_text("[]")
    assert main(["export", *words]) == 0


def test_export_then_check_on_onnxruntime(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [CHECKPOINT, "--cache", str(cache)]
    assert main(["export", *words]) == 0
    out = capsys.readouterr().out
    assert "prefill: products 4 FLOAT16, 16 fp8" in out
    assert "all graph checks passed" in out
    code = main(["check", *words, "--backend", "onnx", "--out", str(tmp_path), "--steps", "4"])
    content = json.loads((tmp_path / "check.json").read_text())
    assert code == (0 if content["verdict"] == "pass" else 1)
    ratios = [row["ratio"] for row in content["layers"] + content["steps"]]
    assert all(0.8 < ratio < 1.25 for ratio in ratios)
    assert "report:" in capsys.readouterr().out
    text = (tmp_path / "check.md").read_text()
    assert "layers and steps" in text
    assert "- preset: fp8\n" in text
    assert main(["export", *words, "--precision", "fp32", "--prefill", "fp8"]) == 2


def test_fp4_is_an_experiment_that_only_a_check_can_judge(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    golden = str(next(cache.rglob("golden.safetensors")))
    words = [CHECKPOINT, "--cache", str(cache)]
    quantize = ["quantize", *words, "--preset", "nvfp4", "--observations", golden, "--steps", "1"]
    assert main(quantize) == 2
    assert "--experimental" in capsys.readouterr().err
    folder = tmp_path / "nvfp4"
    assert main([*quantize, "--samples", "8", "--experimental", "--out", str(folder)]) == 0
    assert "EXPERIMENTAL" in capsys.readouterr().out
    check = ["check", *words, "--backend", "simulated", "--calibration", str(folder)]
    code = main([*check, "--steps", "1", "--out", str(tmp_path)])
    content = json.loads((tmp_path / "check.json").read_text())
    assert code == (0 if content["verdict"] == "pass" else 1)
    assert content["backend"] == "simulated nvfp4"
    assert content["facts"]["preset"] == "nvfp4"
    assert all(0.8 < row["cosine"] < 0.9999 for row in content["layers"] if row["layer"] > 0)
    capsys.readouterr()
    onnx = ["check", *words, "--backend", "onnx", "--calibration", str(folder)]
    assert main([*onnx, "--out", str(tmp_path)]) == 2
    assert "ONNX Runtime has no operators" in capsys.readouterr().err
    if importlib.util.find_spec("tensorrt_rtx"):
        build = ["build", *words, "--calibration", str(folder), "--flavor", "rtx", "--target"]
        assert main([*build, "sm89"]) == 2
        assert "does not compile NVFP4 for sm89" in capsys.readouterr().err
        assert main([*build, "sm120"]) == 0


@pytest.mark.parametrize("command", ["quantize", "export", "build", "check"])
def test_weights_are_loaded_as_they_are(
    command: str, install: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On a GPU the default is bfloat16, which the float32 reference must not inherit."""
    install()
    seen: list[Any] = []

    def load(checkpoint: str, **options: Any) -> Policy:
        seen.append(options["precision"])
        raise BackendError("enough")

    monkeypatch.setattr(Policy, "load", load)
    assert main([command, CHECKPOINT, "--cache", str(tmp_path)]) == 2
    assert seen == ["fp32"]


def test_spread_covers_the_whole_recording() -> None:
    picked = spread(list(range(100)), 5)  # type: ignore[arg-type]
    assert picked == [0, 25, 50, 74, 99]


def test_saved_observation_round_trip(tmp_path: Path) -> None:
    picture = np.arange(27, dtype=np.uint8).reshape(3, 3, 3)
    path = tmp_path / "x.safetensors"
    save_observation(path, Observation({"base": picture}, np.array([1.0, 2.0]), None, 5))
    again = load_observation(path)
    assert np.array_equal(again.images["base"], picture)
    assert (again.prompt, again.stamp_ns, again.state.tolist()) == (None, 5, [1.0, 2.0])
    path.write_bytes(b"")
    with pytest.raises(CalibrationError, match="not a saved observation"):
        load_observation(path)
