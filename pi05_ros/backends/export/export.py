"""Write the stages as ONNX files: opset 20, native Q/DQ, static shapes, weights beside the graph.

The quantizer operators of `fake_quant` are translated straight into QuantizeLinear and
DequantizeLinear with constant scales and typed zero points. (A missing or uint8 zero point makes
TensorRT's parser take INT8 with a mere warning.) Weights are stored as codes, which halves the
file against half precision. Past 2 GB a protobuf cannot hold the weights, so they always lie in
``<stage>.onnx.data``.
"""

from __future__ import annotations

import json
import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pi05_ros.backends.errors import BackendError
from pi05_ros.backends.export.export_document import (
    DTYPES,
    QUANTIZED,
    SCHEMA,
    GraphPlan,
    graph_hash,
)
from pi05_ros.backends.export.fp4_graph import placeholders, write_fp4
from pi05_ros.backends.export.mlp_only import mlp_module
from pi05_ros.backends.files import sha256_file, whole_folder, write_atomically
from pi05_ros.backends.quantization.calibration import Calibration
from pi05_ros.backends.quantization.modules import quantized_stage
from pi05_ros.backends.quantization.presets import expected_quantizers, holds_fp4
from pi05_ros.backends.staged.shapes import (
    MLP_GRAPH,
    STAGES,
    StageShapes,
    StageSpec,
    graphs_of,
    stage_spec,
)
from pi05_ros.backends.staged.stages import FullStage, modulation_table
from pi05_ros.model import Pi05

INSTALL = "pip install onnx onnxscript (pins: requirements/tensorrt.txt)"
INLINE_BYTES = 1024  # smaller constants stay in the graph: shapes, scales, zero points

log = logging.getLogger(__name__)


def require_onnx() -> None:
    """Raise a BackendError with the install line unless the export packages are there."""
    try:
        import onnx  # noqa: F401
        import onnx_ir  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise BackendError(f"exporting needs {error.name}, which is missing: {INSTALL}") from None


def full_stage(
    model: Pi05, dtype: torch.dtype, calibration: Calibration | None, steps: int
) -> FullStage:
    """All three stages and the unrolled flow loop as one module."""
    vision, prefill, denoise = (
        quantized_stage(model, stage, dtype, calibration) for stage in STAGES
    )
    return FullStage(vision, prefill, denoise, modulation_table(model, steps)).eval()


def example_inputs(spec: StageSpec, device: torch.device) -> tuple[torch.Tensor, ...]:
    """Zeros of the right shapes and types; tracing needs no more."""
    return tuple(torch.zeros(t.shape, dtype=t.dtype, device=device) for t in spec.inputs)


def _translations() -> dict[Any, Any]:
    """How our quantizer operators are written in ONNX."""
    import onnx
    from onnxscript import opset20 as op

    code_types = {"fp8": onnx.TensorProto.FLOAT8E4M3FN, "int8": onnx.TensorProto.INT8}

    def zero_point(kind: str, shape: tuple[int, ...]) -> Any:
        count = 1
        for size in shape:
            count *= size
        tensor = onnx.helper.make_tensor("zero", code_types[kind], shape, bytes(count), raw=True)
        return op.Constant(value=tensor)

    def fake_quantize(x: Any, scale: Any, kind: str) -> Any:
        zero = zero_point(kind, ())
        return op.DequantizeLinear(op.QuantizeLinear(x, scale, zero), scale, zero)

    def dequantize_weight(codes: Any, scale: Any, kind: str) -> Any:
        shape = tuple(int(size) for size in scale.shape)
        zero = zero_point(kind, shape)
        if shape:
            return op.DequantizeLinear(codes, scale, zero, axis=1)
        return op.DequantizeLinear(codes, scale, zero)

    fp4_input, fp4_weight = placeholders()
    return {
        torch.ops.pi05_ros.fake_quantize_fp4.default: fp4_input,
        torch.ops.pi05_ros.dequantize_fp4.default: fp4_weight,
        torch.ops.pi05_ros.fake_quantize.default: fake_quantize,
        torch.ops.pi05_ros.dequantize_weight.default: dequantize_weight,
    }


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silence what torch's exporter reports on each run: no torchvision, deprecations."""
    noisy = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = noisy.level
    noisy.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        noisy.setLevel(level)


def _name_nodes(model: Any) -> None:
    """Module paths as node names, so that TensorRT's layers can be found again."""
    counts: dict[str, int] = {}
    for node in model.graph:
        scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes")
        if not scopes:
            continue
        # A list of ever longer module paths, the operator's own name last.
        words = [word.strip(" '\"") for word in scopes.strip("[]").split(",")]
        path = words[-2].replace(".", "/") if len(words) > 1 else ""
        name = f"/{path}/{node.op_type}" if path else f"/{node.op_type}"
        index = counts.get(name, 0)
        counts[name] = index + 1
        node.name = name if index == 0 else f"{name}_{index}"
        node.metadata_props.clear()


@torch.no_grad()
def export_module(module: nn.Module, spec: StageSpec, path: Path) -> None:
    """Export one module to ``path`` and ``path.data``.

    Raises:
        BackendError: export packages missing, or the exporter failed.

    """
    require_onnx()
    import onnx_ir

    tensors = [*module.parameters(), *module.buffers()]
    device = tensors[0].device if tensors else torch.device("cpu")
    with _quiet_exporter():
        try:
            program = torch.onnx.export(
                module,
                example_inputs(spec, device),
                dynamo=True,
                opset_version=20,
                optimize=True,
                verbose=False,
                input_names=[t.name for t in spec.inputs],
                output_names=[t.name for t in spec.outputs],
                custom_translation_table=_translations(),
            )
        except torch.onnx.OnnxExporterError as error:
            reason = str(error).strip().splitlines()[0]
            raise BackendError(f"torch.onnx.export failed for {path.name}: {reason}") from error
    assert program is not None  # with dynamo=True it raises instead
    _name_nodes(program.model)
    write_fp4(program.model)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = path.name + ".data"
    (path.parent / data).unlink(missing_ok=True)
    onnx_ir.save(program.model, path, external_data=data, size_threshold_bytes=INLINE_BYTES)


def quantized_matmuls(stage: str, depth: int, calibration: Calibration | None) -> int:
    """How many products of a stage must be quantized."""
    if calibration is None or stage == "vision":
        return 0
    if stage.startswith(MLP_GRAPH):
        return 3
    names = expected_quantizers(calibration.choice, depth, stages=(stage,))
    weights = sum(name.endswith(".weight_quantizer") for name in names)
    return weights + sum(name.endswith(".a_bmm_quantizer") for name in names)


@dataclass(frozen=True)
class ExportedStage:
    """One file and what its checks found."""

    path: Path
    seconds: float
    report: dict[str, Any]


def export_stage(
    model: Pi05,
    stage: str,
    shapes: StageShapes,
    directory: Path,
    *,
    activation: str = "fp16",
    calibration: Calibration | None = None,
    steps: int = 10,
) -> ExportedStage:
    """Export one stage and check its graph.

    Args:
        model: source of weights, on CPU or GPU.
        stage: "vision", "prefill", "denoise_step", or "full" (loop of ``steps`` unrolled).
        shapes: static shapes.
        directory: where ``<stage>.onnx`` and ``<stage>.onnx.data`` go.
        activation: "fp16" for the artifact, "fp32" for the numeric twin.
        calibration: scales; None exports without quantization.
        steps: flow steps, for "full" only.

    Raises:
        BackendError, GraphError: no export, or a graph that breaks a rule.

    """
    require_onnx()
    from pi05_ros.backends.export.graph_checks import check_graph
    from pi05_ros.backends.export.onnx_graph import Expectation, onnx_type

    dtype = DTYPES[activation]
    started = time.perf_counter()
    spec = stage_spec(stage, shapes, dtype)
    module: nn.Module
    if stage == "full":
        module = full_stage(model, dtype, calibration, steps)
    elif stage.startswith(MLP_GRAPH):
        module = mlp_module(model, stage, dtype, calibration)
    else:
        module = quantized_stage(model, stage, dtype, calibration)
    path = directory / f"{stage}.onnx"
    export_module(module, spec, path)
    del module
    if stage == "full":
        count = quantized_matmuls("prefill", shapes.depth, calibration)
        count += steps * quantized_matmuls("denoise_step", shapes.depth, calibration)
    else:
        count = quantized_matmuls(stage, shapes.depth, calibration)
    kind = calibration.choice.weights if calibration is not None and count else None
    expectation = Expectation(
        activation=activation,
        quantized_matmuls=count,
        kind=kind,
        weight_only=calibration is not None and calibration.choice.activations is None,
        fp4=calibration is not None and holds_fp4(calibration.choice, stage),
        outputs={t.name: (onnx_type(t.dtype), t.shape) for t in spec.outputs},
    )
    report = check_graph(path, expectation)
    seconds = time.perf_counter() - started
    log.info("exported %s in %.1f s: %s", path.name, seconds, report.matmuls)
    return ExportedStage(path, seconds, report.as_dict())


def export_all(
    model: Pi05,
    weights_id: str,
    shapes: StageShapes,
    directory: Path,
    plan: GraphPlan,
) -> dict[str, Any]:
    """Export the three stages (and the full graph) and write ``export.json``.

    Args:
        model: source of weights.
        weights_id: hash of the checkpoint, part of the graph's identity.
        shapes: static shapes.
        directory: where the files go, all of them or none; older ones of the same names are
            replaced.
        plan: what they hold.

    Returns:
        The content of ``export.json``.

    """
    quantized_stages, calibration = plan.quantized_stages, plan.calibration
    unknown = set(quantized_stages) - set(QUANTIZED)
    if unknown:
        raise BackendError(f"stages {sorted(unknown)} are never quantized; those are {QUANTIZED}")
    if plan.full_steps and calibration and set(quantized_stages) != set(QUANTIZED):
        raise BackendError("the full graph is quantized as a whole: prefill and denoise_step")
    stages = [*graphs_of(plan.layout, shapes.depth), *(["full"] if plan.full_steps else [])]
    taking = {*quantized_stages, "full"}
    if "prefill" in quantized_stages:
        taking.update(name for name in stages if name.startswith(MLP_GRAPH))
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "weights": weights_id,
        "preset": calibration.preset if calibration else None,
        "full_steps": plan.full_steps,
        **plan.facts(shapes),
        "torch": torch.__version__,
        "stages": {},
    }
    with whole_folder(directory, "export.json") as part:
        for stage in stages:
            exported = export_stage(
                model,
                stage,
                shapes,
                part,
                activation=plan.activation,
                calibration=calibration if stage in taking else None,
                steps=plan.full_steps or 0,
            )
            document["stages"][stage] = {
                "sha256": sha256_file(exported.path),
                "data_sha256": sha256_file(exported.path.with_name(exported.path.name + ".data")),
                "seconds": round(exported.seconds, 2),
                **exported.report,
            }
        document["graph_hash"] = graph_hash(document)
        text = json.dumps(document, indent=1, sort_keys=True) + "\n"
        write_atomically(part / "export.json", text.encode())
    return document
