"""Second, experimental way to TensorRT: torch-tensorrt for prefill MLPs and denoise step.

Each torch-tensorrt release works with one torch and one TensorRT minor, and the meaning of its
precision options has changed twice, so versions are checked before it is touched. Stages are
quantized by ModelOpt's own simulation (its operators are what torch-tensorrt converts), with the
ranges of our calibration. There is no engine file to verify and keep: it can be judged with
`pi05 check --backend torch_tensorrt`, the node does not load it.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pi05_ros.backends.engine import Precision
from pi05_ros.backends.errors import BackendError
from pi05_ros.backends.export.export import example_inputs
from pi05_ros.backends.export.mlp_only import join_runners
from pi05_ros.backends.identity import parse_version
from pi05_ros.backends.quantization.calibration import Calibration
from pi05_ros.backends.quantization.modules import quantized_stage
from pi05_ros.backends.staged.engine import StagedEngine, TorchRunner
from pi05_ros.backends.staged.shapes import MLP_GRAPH, StageShapes, graphs_of, stage_spec
from pi05_ros.backends.staged.stages import make_stage, prefill_mlp
from pi05_ros.model import Pi05

# torch-tensorrt minor -> TensorRT minor it was built for (from its wheels' metadata). torch
# itself must have the same minor as torch-tensorrt.
TENSORRT_OF = {
    (2, 9): (10, 13),
    (2, 10): (10, 14),
    (2, 11): (10, 15),
    (2, 12): (10, 16),
    (2, 13): (11, 0),
    (2, 14): (11, 1),
}
TYPED_BY_OPTION = ((2, 9), (2, 13))  # from 2.13 on networks are always strongly typed


def check_versions(torch_tensorrt: str, torch_version: str, tensorrt: str) -> tuple[int, int]:
    """Release of torch-tensorrt, if it, torch and TensorRT go together.

    Raises:
        BackendError: naming what does not fit and what would.

    """
    release = parse_version(torch_tensorrt, "torch-tensorrt")
    if release not in TENSORRT_OF:
        known = ", ".join(f"{a}.{b}" for a, b in TENSORRT_OF)
        raise BackendError(f"torch-tensorrt {torch_tensorrt} is not known; accepted: {known}")
    if parse_version(torch_version, "torch") != release:
        raise BackendError(
            f"torch-tensorrt {torch_tensorrt} needs torch {release[0]}.{release[1]}, here is "
            f"{torch_version}"
        )
    needed = TENSORRT_OF[release]
    if parse_version(tensorrt) != needed:
        raise BackendError(
            f"torch-tensorrt {torch_tensorrt} was built for TensorRT {needed[0]}.{needed[1]}, "
            f"here is {tensorrt}"
        )
    return release


def compile_options(release: tuple[int, int]) -> dict[str, Any]:
    """Options of ``torch_tensorrt.dynamo.compile`` for a release."""
    options: dict[str, Any] = {
        "min_block_size": 1,
        "require_full_compilation": True,  # else unsupported parts silently stay in torch
        "disable_tf32": True,
        "use_fp32_acc": True,
        "cache_built_engines": False,  # its cache is at a path in /tmp that anyone can guess
        "reuse_cached_engines": False,
    }
    first, past = TYPED_BY_OPTION
    if first <= release < past:
        options["use_explicit_typing"] = True
    return options


def load_compiler() -> tuple[Any, dict[str, Any]]:
    """The module torch_tensorrt and its options, versions checked.

    Raises:
        BackendError: not installed, does not load, or versions that do not fit.

    """
    if importlib.util.find_spec("torch_tensorrt") is None:
        raise BackendError(
            "torch-tensorrt is not installed: pip install torch-tensorrt (the release of your "
            f"torch {torch.__version__})"
        )
    from pi05_ros.backends.tensorrt.flavor import TENSORRT

    tensorrt = TENSORRT.require()
    try:
        module = importlib.import_module("torch_tensorrt")
    except (ImportError, OSError, RuntimeError) as error:
        raise BackendError(f"torch-tensorrt is there but does not load: {error}") from None
    release = check_versions(str(module.__version__), torch.__version__, tensorrt)
    return module, compile_options(release)


def modelopt_module(
    module: nn.Module, stage: str, names: str, calibration: Calibration
) -> nn.Module:
    """Quantize a float module with ModelOpt's operators and the ranges of a calibration.

    Args:
        module: a stage, or one MLP.
        stage: "prefill" or "denoise_step".
        names: where ``module`` sits in the stage ("" or "layers.3.mlp").
        calibration: an FP8 calibration. Ranges of weights become one per matrix, all that
            torch-tensorrt converts for FP8.

    """
    from pi05_ros.backends.quantization.modelopt_quantizers import (
        enabled_quantizers,
        modelopt_quantize,
    )
    from pi05_ros.backends.quantization.presets import preset

    choice = calibration.choice
    if (choice.weights, choice.activations) != ("fp8", "fp8") or choice.fp4_mlp_stages:
        raise BackendError(f"torch-tensorrt takes FP8 presets here, not {calibration.preset!r}")
    # The names that our quantizer patterns look for.
    holder: nn.Module = module
    for part in reversed([stage, *(names.split(".") if names else [])]):
        holder = nn.ModuleDict({part: holder})

    def nothing(_: nn.Module) -> None:
        """No data: the ranges are known."""

    holder = modelopt_quantize(holder, preset("fp8_tensor"), nothing)
    for name, quantizer in enabled_quantizers(holder).items():
        if name not in calibration.amax:
            raise BackendError(f"the calibration has no range for {name}")
        quantizer.amax = calibration.amax[name].max().to(next(module.parameters()).device)
    for part in [stage, *(names.split(".") if names else [])]:
        holder = holder[part]  # type: ignore[index]
    return holder


def exported_program(module: nn.Module, inputs: Sequence[Tensor]) -> Any:
    """``torch.export`` of a ModelOpt module with its quantizers as operators."""
    from modelopt.torch.quantization.utils import export_torch_mode

    with torch.no_grad(), export_torch_mode():
        return torch.export.export(module, tuple(inputs), strict=False)


class CompiledRunner(TorchRunner):
    """A module compiled by torch-tensorrt, by the names of a stage's tensors."""

    def __init__(
        self,
        module: nn.Module,
        graph: str,
        shapes: StageShapes,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        compiler, options = load_compiler()
        spec = stage_spec(graph, shapes, dtype)
        inputs = example_inputs(spec, device)
        try:
            program = exported_program(module, inputs)
            compiled = compiler.dynamo.compile(program, arg_inputs=list(inputs), **options)
        except Exception as error:  # of torch's exporter, of converters, of TensorRT
            raise BackendError(f"torch-tensorrt cannot compile {graph}: {error}") from error
        super().__init__(compiled, spec)

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run once."""
        return super().run({name: inputs[name].contiguous() for name in self.inputs})


def torch_tensorrt_engine(
    model: Pi05, shapes: StageShapes, calibration: Calibration
) -> StagedEngine:
    """Vision on torch, the prefill's MLPs and the denoise step on torch-tensorrt.

    Raises:
        BackendError: torch-tensorrt or its versions; a preset that is not FP8.

    """
    load_compiler()
    device, dtype = model.device, torch.float16
    vision = quantized_stage(model, "vision", dtype, None)
    graphs: dict[str, Any] = {"vision": TorchRunner(vision, stage_spec("vision", shapes, dtype))}
    for graph in graphs_of("mlp_only", shapes.depth):
        if graph.startswith(MLP_GRAPH):
            layer = int(graph.removeprefix(MLP_GRAPH))
            mlp = prefill_mlp(model, layer, dtype)
            module = modelopt_module(mlp, "prefill", f"layers.{layer}.mlp", calibration)
            graphs[graph] = CompiledRunner(module, graph, shapes, dtype, device)
    step = make_stage(model, "denoise_step", dtype)
    step = modelopt_module(step, "denoise_step", "", calibration)
    graphs["denoise_step"] = CompiledRunner(step, "denoise_step", shapes, dtype, device)
    return StagedEngine(
        model,
        shapes,
        join_runners(model, shapes, dtype, graphs),
        backend="torch_tensorrt",
        precision=Precision("fp16", "fp8", "fp8"),
        dtype=dtype,
        device=device,
        reason="MLPs and denoise step through torch-tensorrt",
    )
