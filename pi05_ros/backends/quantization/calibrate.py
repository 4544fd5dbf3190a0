"""Calibrate prefill and denoise with ModelOpt: ranges of weights and activations, with a report.

The stages run whole observations, all flow steps included, on the plain model's weights.
ModelOpt only measures (`modelopt_quantizers`); the quantized arithmetic itself is `fake_quant`,
the same on every engine. One failing observation fails the calibration: silently skipped samples
are how ranges of nothing come about.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pi05_ros.backends.engine import Precision
from pi05_ros.backends.quantization.calibration import Calibration, CalibrationError
from pi05_ros.backends.quantization.modelopt_quantizers import (
    assert_exact_set,
    enabled_quantizers,
    modelopt_quantize,
    modelopt_version,
)
from pi05_ros.backends.quantization.modules import quantized_stage
from pi05_ros.backends.quantization.presets import (
    PRESETS,
    Preset,
    expected_quantizers,
    preset,
)
from pi05_ros.backends.quantization.samples import Sample, require_real
from pi05_ros.backends.staged.engine import StagedEngine, TorchRunner
from pi05_ros.backends.staged.layers import MatMul
from pi05_ros.backends.staged.shapes import STAGES, StageShapes
from pi05_ros.backends.staged.stages import make_stage
from pi05_ros.model import Pi05

HALF_WARNING = 3.0e4  # activations beyond this may leave float16 on other data

log = logging.getLogger(__name__)


def require_intent(choice: Preset, *, experimental: bool) -> None:
    """Experimental presets are for those who ask for them in so many words.

    Raises:
        CalibrationError: an experimental preset without ``experimental``.

    """
    if choice.experimental and not experimental:
        settled = ", ".join(name for name, other in PRESETS.items() if not other.experimental)
        raise CalibrationError(
            f"preset {choice.name} is experimental (published runs with it kept a cosine of 0.99 "
            "and lost 12 points of success); if you mean it, add --experimental. Others: "
            f"{settled}"
        )


class _Magnitudes:
    """Largest magnitude that each module of the stages put out: what half precision must hold."""

    def __init__(self, stages: nn.ModuleDict) -> None:
        self.largest: dict[str, float] = {}
        self._handles = []
        for stage, module in stages.items():
            for name, child in module.named_modules():
                if isinstance(child, nn.Linear | MatMul):
                    hook = self._hook(f"{stage}.{name}")
                    self._handles.append(child.register_forward_hook(hook))

    def _hook(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            value = max(float(t.detach().abs().max()) for t in (*inputs, output))
            self.largest[name] = max(self.largest.get(name, 0.0), value)

        return hook

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()


def reference_engine(
    model: Pi05,
    shapes: StageShapes,
    stages: nn.ModuleDict | None = None,
    calibration: Calibration | None = None,
    quantized_stages: Sequence[str] = STAGES[1:],
    layout: str = "stages",
) -> StagedEngine:
    """Float32 stages on torch, as they are or with a calibration's quantizers."""
    modules: dict[str, nn.Module] = {}
    for stage in STAGES:
        if stages is not None and stage in stages:
            modules[stage] = stages[stage]
        else:
            ranges = calibration if stage in quantized_stages else None
            only = "mlp" if stage == "prefill" and layout == "mlp_only" else ""
            modules[stage] = quantized_stage(model, stage, torch.float32, ranges, only)
    precision = Precision("fp32", "fp32", "fp32")
    return StagedEngine.on_torch(
        model, shapes, modules, torch.float32, backend="torch", precision=precision
    )


def calibrate(
    model: Pi05,
    weights_id: str,
    samples: Sequence[Sample],
    preset_name: str = "fp8",
    *,
    shapes: StageShapes,
    steps: int = 10,
    allow_synthetic: bool = False,
    experimental: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Calibration:
    """Run the samples through the stages and take the ranges.

    Args:
        model: float32 or bfloat16 weights; calibration computes in float32.
        weights_id: identity of the weights, kept with the ranges.
        samples: at least 8 different recorded observations.
        preset_name: see `presets.PRESETS`.
        shapes: static shapes; prompts and cameras of all samples must fit.
        steps: flow steps each sample runs.
        allow_synthetic: take made-up samples (dry runs, tests).
        experimental: take presets that are marked so.
        progress: called with (samples done, samples).

    Raises:
        BackendError: ModelOpt missing or too old.
        CalibrationError: preset or samples refused, a sample failed, or the quantizers are not
            exactly those of the preset with usable ranges.

    """
    choice = preset(preset_name)
    require_intent(choice, experimental=experimental)
    require_real(samples, allow_synthetic=allow_synthetic)
    version = modelopt_version()
    stages = nn.ModuleDict(
        {name: make_stage(model, name, torch.float32) for name in STAGES if name != "vision"}
    )
    if choice.algorithm == "smoothquant":
        stages = copy.deepcopy(stages)  # it rewrites weights, which are shared with the model
    engine = reference_engine(model, shapes, stages)
    magnitudes = _Magnitudes(stages)
    modelopt_quantize(stages, choice, lambda _: _run_all(engine, samples, steps, progress))
    magnitudes.remove()
    enabled = enabled_quantizers(stages)
    names = tuple(stages.keys())
    depth = model.config.vlm.depth
    assert_exact_set(enabled, expected_quantizers(choice, depth, stages=names))
    amax, smooth = _ranges(enabled)
    measured = Calibration(choice.name, amax, smooth)
    measured.check_ranges()
    loud = {name: value for name, value in magnitudes.largest.items() if value > HALF_WARNING}
    for name, value in sorted(loud.items()):
        log.warning("%s reaches %.3g; float16 ends at 65504", name, value)
    info = {
        "weights": weights_id,
        "modelopt": ".".join(map(str, version)),
        "torch": torch.__version__,
        "steps": steps,
        "shapes": shapes.as_dict(),
        "synthetic": any(sample.synthetic for sample in samples),
        "failures": 0,
        "samples": [{"name": sample.name, "sha256": sample.digest} for sample in samples],
        "near_half_limit": loud,
        "layers": layer_report(model, shapes, measured, samples, steps),
    }
    return Calibration(choice.name, amax, smooth, info)


@torch.no_grad()
def _run_all(
    engine: StagedEngine,
    samples: Sequence[Sample],
    steps: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Show every sample to the stages."""
    for index, sample in enumerate(samples):
        try:
            actions = engine.sample(sample.images, sample.tokens, sample.noise, steps)
        except Exception as error:
            raise CalibrationError(f"observation {sample.name} failed: {error}") from error
        if not bool(torch.isfinite(actions).all()):
            raise CalibrationError(f"observation {sample.name} gives non-finite actions")
        if progress is not None:
            progress(index + 1, len(samples))


def _ranges(enabled: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What the quantizers have measured: largest magnitudes, and SmoothQuant's factors."""
    amax: dict[str, Tensor] = {}
    smooth: dict[str, Tensor] = {}
    for name, quantizer in enabled.items():
        if quantizer.amax is None:
            raise CalibrationError(f"{name} saw no data")
        amax[name] = quantizer.amax.detach().float().cpu().squeeze()
        factor = getattr(quantizer, "pre_quant_scale", None)
        if factor is not None:
            linear = name.removesuffix(".input_quantizer")
            smooth[linear] = factor.detach().float().cpu().reshape(-1)
    return amax, smooth


@torch.no_grad()
def layer_report(
    model: Pi05,
    shapes: StageShapes,
    calibration: Calibration,
    samples: Sequence[Sample],
    steps: int,
) -> dict[str, dict[str, float]]:
    """How each quantized input sits in its range, measured in the quantized model.

    Upstream layers are quantized here, so values may exceed what calibration saw.

    Returns:
        Linear -> ``amax``, ``clipped`` (share of values beyond the range), ``flushed`` (share of
        non-zero values that become zero), ``weight_amax``.

    """
    from pi05_ros.backends.quantization.fake_quant import LARGEST
    from pi05_ros.backends.quantization.modules import QuantLinear
    from pi05_ros.backends.quantization.nvfp4 import Fp4Linear

    engine = reference_engine(model, shapes, calibration=calibration)
    kind = calibration.choice.activations
    report: dict[str, dict[str, float]] = {}
    counts: dict[str, list[float]] = {}
    handles = []

    def watch(name: str) -> Callable[..., None]:
        def hook(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            x = inputs[0].float()
            if isinstance(module, Fp4Linear):
                clipped, flushed = module.range_use(x)
            else:
                if "smooth" in module._buffers:
                    x = x * module.smooth.float()
                ratio = x.abs() / module.input_scale.float()
                smallest = 2.0**-10 if kind == "fp8" else 0.5
                clipped = float((ratio > LARGEST[str(kind)] * (1 + 1e-3)).sum())
                flushed = float(((ratio > 0) & (ratio <= smallest)).sum())
            sums = counts.setdefault(name, [0.0, 0.0, 0.0])
            for index, value in enumerate((clipped, flushed, float(x.numel()))):
                sums[index] += value

        return hook

    for stage in STAGES[1:]:
        runner = engine.runners[stage]
        assert isinstance(runner, TorchRunner)
        for child_name, child in runner.module.named_modules():
            if isinstance(child, QuantLinear | Fp4Linear):
                name = f"{stage}.{child_name}"
                weight = calibration.amax[f"{name}.weight_quantizer"]
                report[name] = {"weight_amax": float(weight.max())}
                if kind is not None:
                    amax = calibration.amax[f"{name}.input_quantizer"]
                    report[name]["amax"] = float(amax)
                    report[name]["scale"] = float(child.input_scale)
                    handles.append(child.register_forward_hook(watch(name)))
    for sample in samples[: min(8, len(samples))]:
        engine.sample(sample.images, sample.tokens, sample.noise, steps)
    for handle in handles:
        handle.remove()
    for name, (clipped, flushed, total) in counts.items():
        report[name]["clipped"] = clipped / total
        report[name]["flushed"] = flushed / total
    return report
