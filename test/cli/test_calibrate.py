"""`pi05 calibrate`, its earlier name, and `pi05 tune`, before they need a GPU."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from pi05_ros.backends import cuda
from pi05_ros.cli.main import main
from pi05_ros.errors import InvalidValueError
from pi05_ros.workflows.engine_requests import (
    CudaCalibrationRequest,
    GraphRequest,
    ModelRequest,
    SampleRequest,
    StageCalibrationRequest,
)


@pytest.fixture
def able(monkeypatch):
    monkeypatch.setattr(cuda, "usable", lambda: (True, ""))


def test_without_a_gpu_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(cuda, "usable", lambda: (False, "there is no CUDA device"))
    assert main(["calibrate", "random:tiny"]) == 2
    assert "runs the cuda backend: there is no CUDA device" in capsys.readouterr().err


def test_a_missing_bag_reader_is_named_before_weights_are_loaded(able, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "rosbags" else find(name, *a)
    )
    assert main(["calibrate", "no/such/checkpoint", "--bag", "x"]) == 2
    assert "needs the package rosbags" in capsys.readouterr().err


def test_it_wants_observations(able, capsys):
    assert main(["calibrate", "random:tiny", "--device", "cpu"]) == 2
    assert "give --observations or --bag" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--preset", "nope"], "preset 'nope' is unknown; accepted: pi05, tiny"),
        (["--views", "-3"], "--views is -3; accepted: 0 or more"),
        (["--tokens", "0"], "--tokens is 0; accepted: 1 or more"),
        (["--horizon", "0"], "--horizon is 0; accepted: 1 or more"),
        (["--views", "2", "3", "--tokens", "20"], "one number for each workload"),
    ],
)
def test_tune_names_what_it_cannot_take(capsys, words, message):
    assert main(["tune", *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--preset", "fp8"], "--preset is not for --for cuda"),
        (["--for", "cuda", "--experimental"], "--experimental is not for --for cuda"),
        (["--for", "onnx", "--vision", "fp8"], "--vision is not for --for onnx"),
        (["--for", "tensorrt", "--vision", "bf16"], "--vision is not for --for tensorrt"),
    ],
)
def test_options_of_the_other_targets_are_refused(words, message, capsys):
    assert main(["calibrate", "random:tiny", *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["calibrate", "--for", "onnx"], ["calibrate", "--for", "tensorrt"], ["quantize"]]
)
def test_every_name_makes_the_same_request(words, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "pi05_ros.workflows.calibrate_stages.calibrate_stages",
        lambda request, outlets: seen.append(request),
    )
    options = ["random:tiny", "--preset", "w8a16", "--bag", "a", "b", "--samples", "9"]
    assert main([*words, *options, "--map", "base_camera=/x", "--prompt", "go"]) == 0
    model = ModelRequest("random:tiny")
    samples = SampleRequest(
        bags=(Path("a"), Path("b")), topics=("base_camera=/x",), prompt="go", count=9
    )
    assert seen == [StageCalibrationRequest(model, samples, "w8a16")]


def test_defaults_of_the_command_are_those_of_the_request(monkeypatch):
    seen = []
    monkeypatch.setattr(
        "pi05_ros.workflows.calibrate_cuda.calibrate_cuda",
        lambda request, warn: seen.append(request),
    )
    assert main(["calibrate", "random:tiny"]) == 0
    assert seen == [CudaCalibrationRequest(ModelRequest("random:tiny"))]


@pytest.mark.parametrize(
    "wrong", [{"precision": "fp4"}, {"prefill": "bf16"}, {"layout": "x"}, {"denoise": ""}]
)
def test_a_request_refuses_words_that_no_stage_has(wrong):
    with pytest.raises(InvalidValueError, match=f"{next(iter(wrong))} is .*; accepted: "):
        GraphRequest(**wrong)
