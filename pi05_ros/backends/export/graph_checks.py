"""What must hold for every exported graph, checked after each export.

The types in the graph bind TensorRT because networks are strongly typed: if softmax reads
float32 here, it runs in float32 there. All violations are collected, then raised together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto

from pi05_ros.backends.errors import BackendError
from pi05_ros.backends.export.fp4_graph import OPSET as FP4_OPSET
from pi05_ros.backends.export.fp4_graph import TRT_DOMAIN, TRT_QUANTIZE
from pi05_ros.backends.export.onnx_graph import (
    FLOAT,
    HALF,
    LAYOUT_OPS,
    Expectation,
    GraphReport,
    GraphView,
    constant_values,
    load_graph,
)
from pi05_ros.backends.export.quantizer_checks import (
    product_problems,
    quantizer_problems,
    scale_problems,
)

OPSET = 20
# Operators that TensorRT's ONNX parser has imported since 10.0 and that these stages need.
# Later additions (Attention 10.14, RMSNormalization and RotaryEmbedding 10.15) would make the
# parser of JetPack 7.0 refuse the graph; fused normalizations would hide their types.
ALLOWED_OPS = frozenset(
    {
        "Add",
        "Cast",
        "Concat",
        "Constant",
        "Conv",
        "Cos",
        "DequantizeLinear",
        "Div",
        "Expand",
        "Flatten",
        "Gather",
        "Gelu",
        "Gemm",
        "Identity",
        "MatMul",
        "Mul",
        "Neg",
        "QuantizeLinear",
        "Reciprocal",
        "ReduceMean",
        "Reshape",
        "Sin",
        "Slice",
        "Softmax",
        "Split",
        "Sqrt",
        "Squeeze",
        "Sub",
        "Transpose",
        "Unsqueeze",
    }
)
# These compute in float32 in every stage.
FLOAT_ONLY = frozenset({"Softmax", "ReduceMean", "Sqrt", "Reciprocal", "Cos", "Sin"})


class GraphError(BackendError):
    """A graph broke a rule; the message lists every broken one."""


def check_graph(path: Path, expectation: Expectation) -> GraphReport:
    """Check an exported file, weights included.

    Args:
        path: the .onnx file; external data lies next to it.
        expectation: what this stage must contain.

    Raises:
        GraphError: with every violation.

    """
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except onnx.checker.ValidationError as error:
        raise GraphError(f"{path.name} is not a valid ONNX model: {error}") from None
    return check_model(load_graph(path), expectation, path.parent, path.name)


def check_model(
    model: onnx.ModelProto, expectation: Expectation, folder: Path | None, name: str
) -> GraphReport:
    """Check a graph in memory; external weights are read from ``folder``."""
    try:
        graph = GraphView(model)
    except onnx.shape_inference.InferenceError as error:
        raise GraphError(f"{name}: types do not fit together: {error}") from None
    report = GraphReport(ops=dict(Counter(node.op_type for node in graph.nodes)))
    problems = [
        *_vocabulary(graph, expectation),
        *_static_shapes(graph, expectation),
        *_initializers(graph, folder, report),
        *_islands(graph, expectation),
        *quantizer_problems(graph, expectation, folder),
        *product_problems(graph, expectation, report),
        *scale_problems(graph, expectation, folder),
        *_softmax_inputs(graph),
    ]
    if problems:
        listed = "\n  ".join(problems[:20])
        more = f"\n  and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise GraphError(f"{name} breaks {len(problems)} rule(s):\n  {listed}{more}")
    return report


def _vocabulary(graph: GraphView, expectation: Expectation) -> Iterator[str]:
    version = FP4_OPSET if expectation.fp4 else OPSET
    for opset in graph.model.opset_import:
        own = expectation.fp4 and opset.domain == TRT_DOMAIN
        if opset.domain not in ("", "ai.onnx") and not own:
            yield f"operators of domain {opset.domain!r}: only standard ONNX is allowed"
        elif not own and opset.version != version:
            yield f"opset {opset.version}, not {version}"
    if graph.model.functions:
        yield "local functions; the graph must be flat"
    for node in graph.nodes:
        if expectation.fp4 and (node.domain, node.op_type) == (TRT_DOMAIN, TRT_QUANTIZE):
            continue
        if node.domain not in ("", "ai.onnx") or node.op_type not in ALLOWED_OPS:
            domain = node.domain or "ai.onnx"
            yield f"operator {domain}.{node.op_type} ({node.name}) is not allowed"


def _static_shapes(graph: GraphView, expectation: Expectation) -> Iterator[str]:
    for node in graph.nodes:
        for value in node.output:
            if value and None in graph.shapes.get(value, (None,)):
                yield f"the shape of {value} ({node.op_type}) is not static"
    for info in graph.model.graph.input:
        if None in graph.shapes[info.name]:
            yield f"the shape of input {info.name} is not static"
    found = {info.name for info in graph.model.graph.output}
    for name in sorted(found ^ set(expectation.outputs)):
        yield f"output {name} is {'unexpected' if name in found else 'missing'}"
    for name, (element, shape) in expectation.outputs.items():
        if name in found and (graph.types[name], graph.shapes[name]) != (element, shape):
            yield (
                f"output {name} is {graph.type_name(name)} {graph.shapes[name]}, expected "
                f"{TensorProto.DataType.Name(element)} {shape}"
            )


def _initializers(graph: GraphView, folder: Path | None, report: GraphReport) -> Iterator[str]:
    for name, tensor in graph.constants.items():
        if tensor.data_type == TensorProto.FLOAT8E4M3FN and not (
            tensor.HasField("raw_data") or tensor.data_location == TensorProto.EXTERNAL
        ):
            yield f"FP8 constant {name} is not stored as raw bytes"
        values = constant_values(tensor, folder)
        report.initializer_bytes += values.nbytes
        if tensor.data_type in (FLOAT, HALF):
            finite = bool(np.isfinite(values).all())
        elif tensor.data_type == TensorProto.FLOAT8E4M3FN:
            finite = not (np.bitwise_and(values.view(np.uint8), 0x7F) == 0x7F).any()
        else:
            continue
        if not finite:
            yield f"constant {name} holds NaN or infinity"


def _islands(graph: GraphView, expectation: Expectation) -> Iterator[str]:
    for node in graph.nodes:
        if node.op_type not in FLOAT_ONLY:
            continue
        for value in (node.input[0], node.output[0]):
            if graph.types.get(value) != FLOAT:
                yield f"{node.op_type} ({node.name}) runs in {graph.type_name(value)}, not FLOAT"
                break
    # Rotary angles: everything that reads a cosine or sine is float32 up to the first cast.
    angles = [node for node in graph.nodes if node.op_type in ("Cos", "Sin")]
    pending = [value for node in angles for value in node.output]
    seen: set[str] = set()
    while pending:
        value = pending.pop()
        for node in graph.nodes:
            if value not in node.input or node.name in seen:
                continue
            seen.add(node.name)
            if node.op_type == "Cast":
                if graph.types.get(node.input[0]) != FLOAT:
                    yield f"rotary value {value} is not FLOAT"
                rotated = graph.producer.get(node.input[0])
                if rotated is not None and rotated.op_type in ("Cos", "Sin"):
                    yield f"cosine or sine {value} is rounded before the rotation ({node.name})"
            elif node.op_type in LAYOUT_OPS:
                pending.extend(node.output)
            elif any(graph.types.get(out) != FLOAT for out in node.output):
                yield f"rotary product {node.name} ({node.op_type}) is not FLOAT"


def _softmax_inputs(graph: GraphView) -> Iterator[str]:
    """Mask added in float32; the scale sits on Q before the product, where TensorRT fuses it."""
    for node in graph.nodes:
        if node.op_type != "Softmax":
            continue
        current = graph.source(node.input[0], LAYOUT_OPS)
        if current is not None and current.op_type == "Add":
            if any(graph.types.get(value) != FLOAT for value in current.input):
                yield f"the mask of {node.name} is added in half precision"
            sources = [graph.source(value, LAYOUT_OPS) for value in current.input]
            current = next((s for s in sources if s is not None and s.op_type == "MatMul"), None)
        if current is None or current.op_type != "MatMul":
            what = "nothing" if current is None else current.op_type
            yield f"{node.name} reads {what} where the product of Q and K was expected"
            continue
        q = graph.source(current.input[0], LAYOUT_OPS | {"DequantizeLinear", "QuantizeLinear"})
        if q is None or q.op_type != "Mul":
            yield f"Q of {node.name} is not scaled before the product"
