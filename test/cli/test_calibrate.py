"""`pi05 calibrate` and `pi05 tune` before they need a GPU."""

from __future__ import annotations

import importlib.util

import pytest

from pi05_ros.backends import cuda
from pi05_ros.cli.main import main


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
    ],
)
def test_tune_names_what_it_cannot_take(capsys, words, message):
    assert main(["tune", *words]) == 2
    assert message in capsys.readouterr().err
