"""Files of the cuda backend: where they lie, and damaged ones."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from pi05_ros.backends import BackendError
from pi05_ros.backends.cuda import tuning
from pi05_ros.backends.cuda.hopper import compile as compiler
from pi05_ros.backends.cuda.hopper import launch
from pi05_ros.backends.cuda.scales import ActivationScales

SITES = ("prefill.0.qkv", "prefill.0.down")


@pytest.mark.parametrize("text", ["{", "[]", "3", '{"like": "nothing"}', '{"like": [1]}'])
def test_kernel_choices_that_cannot_be_read_are_left_out(text, tmp_path, monkeypatch, caplog):
    bad, good = tmp_path / "bad.json", tmp_path / "good.json"
    bad.write_text(text)
    good.write_text('{"norm_warps": 16}')
    files = [tmp_path / "missing.json", bad, good]
    monkeypatch.setattr(tuning, "candidates", lambda device: files)
    found = tuning.load(torch.device("cpu"))
    assert (found.values["norm_warps"], found.source) == (16, str(good))
    assert ("cannot be read" in caplog.text) == ("like" not in text)


def test_what_a_tuning_file_of_an_older_version_lacks_is_taken_from_ours(tmp_path, monkeypatch):
    ours, own = tmp_path / "ours.json", tmp_path / "cache/own.json"
    ours.write_text('{"norm_warps": 16, "prefill_kernels": "hopper"}')
    monkeypatch.setattr(tuning, "candidates", lambda device: [ours])
    monkeypatch.setattr(tuning, "user_file", lambda device: own)
    device = torch.device("cpu")
    assert tuning.load(device).source == str(ours)
    pytest.importorskip("triton")
    from pi05_ros.backends.cuda import tuner

    for chosen in ({"norm_warps": 2, "geglu_block": 512}, {"norm_warps": 8}):
        assert tuner.save(chosen, device) == own
    assert json.loads(own.read_text()) == {"norm_warps": 8, "geglu_block": 512}
    found = tuning.load(device, {"geglu_block": 256})
    values = [found.values[key] for key in ("norm_warps", "prefill_kernels", "geglu_block")]
    assert (values, found.source) == ([8, "hopper", 256], str(own))


def made(amax=(1.0, 2.0)) -> ActivationScales:
    return ActivationScales(SITES, torch.tensor(amax), "f" * 64, 3)


def test_scales_come_back(tmp_path):
    made().save(tmp_path / "scales")
    assert sorted(os.listdir(tmp_path)) == ["scales.json", "scales.safetensors"]
    back = ActivationScales.load(tmp_path / "scales.json")
    assert (back.sites, back.amax.tolist(), back.observations) == (SITES, [1.0, 2.0], 3)


def test_names_of_scales_may_hold_dots(tmp_path):
    for name, amax in (("pi0.5_droid", (1.0, 2.0)), ("pi0.5_aloha", (3.0, 4.0))):
        made(amax).save(tmp_path / name)
    assert len(os.listdir(tmp_path)) == 4
    for name in ("pi0.5_droid", "pi0.5_droid.json", "pi0.5_droid.safetensors"):
        assert ActivationScales.load(tmp_path / name).amax.tolist() == [1.0, 2.0]


def test_damaged_scales_are_one_clear_error(tmp_path):
    path = tmp_path / "scales"
    with pytest.raises(BackendError, match="no calibration"):
        ActivationScales.load(path)
    with pytest.raises(BackendError, match="no calibration"):
        ActivationScales.load(Path("/"))
    for amax in ((1.0, float("nan")), (float("inf"), 1.0), (-1.0, 1.0), (1.0,)):
        made(amax).save(path)
        with pytest.raises(BackendError, match="no calibration"):
            ActivationScales.load(path)
    made().save(path)
    whole = path.with_suffix(".safetensors").read_bytes()
    path.with_suffix(".safetensors").write_bytes(whole[:-3])
    with pytest.raises(BackendError, match="no calibration"):
        ActivationScales.load(path)
    path.with_suffix(".json").write_text("[]")
    with pytest.raises(BackendError, match="no calibration"):
        ActivationScales.load(path)


def test_a_driver_that_refuses_the_compiler_is_found_before_any_kernel_is_needed(monkeypatch):
    """The Triton kernels take over only if this is known when the engine is built."""
    given = []

    class Compiler:
        def compile(self, name, source, headers, options):
            given.append(source)
            return b"cubin"

    def refuse(image, device):
        raise compiler.KernelError("cuModuleLoadData: no kernel image is available (209)")

    monkeypatch.setattr(compiler, "nvrtc", Compiler)
    monkeypatch.setattr(launch, "Module", refuse)
    with pytest.raises(BackendError, match="209"):
        launch.probe(torch.device("cuda", 0))
    assert len(given) == 1


def test_the_empty_kernel_compiles():
    try:
        nvrtc = compiler.nvrtc()
    except compiler.KernelError as error:
        pytest.skip(str(error))
    text = 'extern "C" __global__ void nothing() {}'
    assert nvrtc.compile("probe.cu", text, {}, compiler.OPTIONS)[:4] == b"\x7fELF"
