"""Calibration: exact quantizer sets with two ModelOpt releases, refusals, files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pi05_ros.backends.identity import weights_id
from pi05_ros.backends.quantization import modelopt_quantizers
from pi05_ros.backends.quantization.calibrate import calibrate, reference_engine
from pi05_ros.backends.quantization.calibration import Calibration, CalibrationError
from pi05_ros.backends.quantization.fake_quant import (
    LARGEST,
    fake_quantize,
    quantize,
    scale_from_amax,
)
from pi05_ros.backends.quantization.modelopt_quantizers import assert_exact_set, modelopt_quantize
from pi05_ros.backends.quantization.modules import apply_calibration
from pi05_ros.backends.quantization.presets import PRESETS, expected_quantizers, preset
from pi05_ros.backends.quantization.samples import (
    Sample,
    load_samples,
    require_real,
    save_samples,
)
from pi05_ros.backends.staged.shapes import StageShapes
from pi05_ros.backends.staged.stages import make_stage
from pi05_ros.model import Pi05

ROOT = Path(__file__).resolve().parents[2]
OLDEST = ROOT / ".cache" / "modelopt-0.43.0"

# Run with another ModelOpt on the path: prints its release and, per preset, the digest of the
# ranges (which covers the names of all enabled quantizers).
OTHER_RELEASE = """
import json, sys, torch
torch.set_num_threads(1)
import modelopt
from pi05_ros.backends.identity import weights_id
from pi05_ros.backends.quantization.calibrate import calibrate
from pi05_ros.backends.quantization.samples import synthetic_samples
from pi05_ros.backends.staged.shapes import StageShapes
from pi05_ros.model import Pi05, Pi05Config
model = Pi05.random(Pi05Config.preset("tiny"), seed=3)
shapes = StageShapes.of(model.config, 2, 12, 10)
samples = synthetic_samples(
    model.config, 8, views=2, prompt_tokens=12, horizon=10, seed=1
)
digests = {}
for name in sys.argv[1:]:
    found = calibrate(
        model, weights_id(model), samples, name, shapes=shapes, steps=2, allow_synthetic=True,
        experimental=True,
    )
    digests[name] = found.digest
print(json.dumps({"version": modelopt.__version__, "digests": digests}))
"""


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_exact_quantizer_set_and_ranges(
    name: str, model: Pi05, shapes: StageShapes, samples: list[Sample]
) -> None:
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = calibrate(
        model,
        weights_id(model),
        samples,
        name,
        shapes=shapes,
        steps=2,
        allow_synthetic=True,
        experimental=preset(name).experimental,
    )
    depth = model.config.vlm.depth
    expected = expected_quantizers(preset(name), depth, stages=("prefill", "denoise_step"))
    assert set(found.amax) == expected
    linears = 7 * depth + 7 * (depth - 1) + 2
    per_linear = 2 if preset(name).activations else 1
    attention = 4 * (depth - 1) if name == "fp8_attention" else 0
    assert len(expected) == linears * per_linear + attention
    found.check_ranges()
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert found.info["failures"] == 0
    assert len(found.info["samples"]) == 8
    layer = found.info["layers"]["prefill.layers.0.q_proj"]
    assert layer["weight_amax"] > 0
    if preset(name).activations:
        assert 0 <= layer["clipped"] < 0.01


def test_oldest_and_newest_modelopt_agree(
    model: Pi05, shapes: StageShapes, samples: list[Sample]
) -> None:
    import modelopt

    assert OLDEST.is_dir(), "run scripts/setup_export.sh dev first"
    path = os.pathsep.join((str(OLDEST), str(ROOT)))
    names = ["fp8", "fp8_attention", "int8_smoothquant", "nvfp4"]
    done = subprocess.run(
        [sys.executable, "-c", OTHER_RELEASE, *names],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    other = json.loads(done.stdout.strip().splitlines()[-1])
    assert other["version"].startswith("0.43.")
    assert modelopt.__version__ != other["version"]
    for name in names:
        ours = calibrate(
            model,
            weights_id(model),
            samples,
            name,
            shapes=shapes,
            steps=2,
            allow_synthetic=True,
            experimental=True,
        )
        assert ours.digest == other["digests"][name]


def test_our_arithmetic_is_modelopts(
    model: Pi05, shapes: StageShapes, samples: list[Sample], calibration: Calibration
) -> None:
    """With equal ranges our codes are those of ModelOpt's own simulation."""
    stages = nn.ModuleDict(
        {name: make_stage(model, name, torch.float32) for name in ("prefill", "denoise_step")}
    )
    engine = reference_engine(model, shapes, stages)

    def forward(_: nn.Module) -> None:
        for sample in samples:
            engine.sample(sample.images, sample.tokens, sample.noise, 2)

    modelopt_quantize(stages, preset("fp8"), forward)
    generator = torch.Generator().manual_seed(0)
    for name in ("prefill.layers.1.mlp.down_proj", "denoise_step.layers.0.q_proj"):
        linear = stages.get_submodule(name)
        x = 3 * torch.randn(50, linear.in_features, generator=generator)
        for quantizer, value, key in (
            (linear.input_quantizer, x, f"{name}.input_quantizer"),
            (linear.weight_quantizer, linear.weight, f"{name}.weight_quantizer"),
        ):
            amax = calibration.amax[key]
            # Ours are rounded up to scales that a half can hold; give ModelOpt the same.
            scale = scale_from_amax(amax, "fp8")
            quantizer.amax = (scale * 448.0).reshape(quantizer.amax.shape)
            theirs = quantizer(value)
            column = scale if scale.ndim == 0 else scale[:, None]
            ours = quantize(value, column, "fp8").float() * column
            # It multiplies by reciprocals, we divide: the last bit may round differently.
            equal = torch.isclose(ours, theirs, rtol=1e-5, atol=1e-9).float().mean()
            assert equal > 0.999, key


def test_refuses_unlisted_and_missing_quantizers() -> None:
    with pytest.raises(CalibrationError, match=r"1 missing \['b'\], 1 unexpected \['c'\]"):
        assert_exact_set({"a", "c"}, {"a", "b"})


def test_refuses_few_repeated_and_synthetic_samples(samples: list[Sample]) -> None:
    with pytest.raises(CalibrationError, match="7 observations are too few"):
        require_real(samples[:7], allow_synthetic=True)
    with pytest.raises(CalibrationError, match="allow-synthetic"):
        require_real(samples, allow_synthetic=False)
    with pytest.raises(CalibrationError, match="only 1 of 8 observations differ"):
        require_real([samples[0]] * 8, allow_synthetic=True)
    real = [Sample(s.name, s.images, s.tokens, s.noise) for s in samples]
    require_real(real, allow_synthetic=False)


def test_one_failing_sample_fails_the_calibration(
    model: Pi05, shapes: StageShapes, samples: list[Sample]
) -> None:
    long_prompt = torch.zeros(13, dtype=torch.long)
    bad = Sample("too-long", samples[0].images, long_prompt, samples[0].noise, True)
    with pytest.raises(CalibrationError, match=r"too-long failed.*13 tokens"):
        calibrate(model, "sha256:x", [*samples, bad], shapes=shapes, steps=1, allow_synthetic=True)


def test_old_modelopt_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import modelopt

    monkeypatch.setattr(modelopt, "__version__", "0.42.0")
    with pytest.raises(RuntimeError, match=r"0\.42\.0 is too old"):
        modelopt_quantizers.modelopt_version()


def test_modelopt_without_what_it_needs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its wheels import packages that they do not ask for."""
    monkeypatch.setitem(sys.modules, "modelopt.torch.quantization", None)
    with pytest.raises(RuntimeError, match=r"does not load: .*requirements/tensorrt\.txt lists"):
        modelopt_quantizers.modelopt_version()


def test_calibration_file_round_trip(calibration: Calibration, tmp_path: Path) -> None:
    calibration.save(tmp_path)
    again = Calibration.load(tmp_path)
    assert again.digest == calibration.digest
    assert again.info["samples"] == calibration.info["samples"]
    assert {p.name for p in tmp_path.iterdir()} == {"amax.safetensors", "calibration.json"}


def test_damaged_calibrations_are_refused(calibration: Calibration, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="pi05 calibrate --for tensorrt"):
        Calibration.load(tmp_path)
    calibration.save(tmp_path)
    name = next(iter(calibration.amax))
    other = {**calibration.amax, name: calibration.amax[name] * 2}
    Calibration("fp8", other).save(tmp_path / "other")
    (tmp_path / "amax.safetensors").write_bytes(
        (tmp_path / "other" / "amax.safetensors").read_bytes()
    )
    with pytest.raises(CalibrationError, match="do not belong together"):
        Calibration.load(tmp_path)
    (tmp_path / "amax.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(CalibrationError, match="damaged"):
        Calibration.load(tmp_path)
    for text in ("[]", '{"format": 1}', '{"preset": "fp8"}', "{"):
        (tmp_path / "calibration.json").write_text(text)
        with pytest.raises(CalibrationError, match="damaged"):
            Calibration.load(tmp_path)
    with pytest.raises(CalibrationError, match="no calibration in"):
        Calibration.load(tmp_path / "amax.safetensors")


def test_unusable_ranges_are_refused() -> None:
    for bad in (0.0, float("nan"), float("inf"), -1.0):
        with pytest.raises(CalibrationError, match="no usable range"):
            Calibration("fp8", {"x": torch.tensor(bad)}).check_ranges()


def test_calibration_of_another_model_is_refused(model: Pi05, calibration: Calibration) -> None:
    stage = make_stage(model, "prefill", torch.float32)
    fewer = dict(list(calibration.amax.items())[1:])
    with pytest.raises(CalibrationError, match="does not fit the prefill stage"):
        apply_calibration(stage, "prefill", Calibration("fp8", fewer))
    name = "prefill.layers.0.q_proj.weight_quantizer"
    wrong = {**calibration.amax, name: torch.ones(3)}
    with pytest.raises(CalibrationError, match="has 3 ranges"):
        apply_calibration(stage, "prefill", Calibration("fp8", wrong))


def test_samples_file_round_trip(samples: list[Sample], tmp_path: Path) -> None:
    digest = save_samples(tmp_path / "golden.safetensors", samples)
    again, digest_again = load_samples(tmp_path / "golden.safetensors")
    assert digest == digest_again
    assert [s.digest for s in again] == [s.digest for s in samples]
    assert all(s.synthetic for s in again)
    (tmp_path / "golden.safetensors").write_bytes(b"\0" * 64)
    with pytest.raises(CalibrationError, match="not a set of samples"):
        load_samples(tmp_path / "golden.safetensors")


@settings(max_examples=60, deadline=None)
@given(
    amax=st.floats(min_value=0.0, max_value=2.0e4, allow_nan=False),
    kind=st.sampled_from(["fp8", "int8"]),
)
def test_scales_are_halves_that_clip_nothing(amax: float, kind: str) -> None:
    scale = scale_from_amax(torch.tensor(amax), kind)
    assert float(scale.half()) == float(scale) > 0
    assert float(scale) * LARGEST[kind] >= amax * (1 - 1e-6)
    value = torch.tensor([amax, -amax])
    again = fake_quantize(value, scale, kind)
    assert torch.isfinite(again).all()
    # e4m3 has three mantissa bits: half a step is at most 1/16 of the value.
    assert (again - value).abs().max() <= max(amax / 16 * 1.001, float(scale))


def test_scale_beyond_half_is_refused() -> None:
    with pytest.raises(ValueError, match="beyond float16"):
        scale_from_amax(torch.tensor(1e9), "fp8")


def test_codes_saturate_instead_of_becoming_nan() -> None:
    codes = quantize(torch.tensor([1e6, -1e6]), torch.tensor(1.0), "fp8")
    assert codes.float().tolist() == [448.0, -448.0]


def test_unknown_preset_is_named() -> None:
    with pytest.raises(ValueError, match="accepted: fp8"):
        preset("fp4")
