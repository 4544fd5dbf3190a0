"""What must hold for every exported graph, checked after each export.

The types in the graph bind TensorRT because networks are strongly typed: if softmax reads
float32 here, it runs in float32 there. All violations are collected, then raised together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import NodeProto, TensorProto, numpy_helper

from pi05_ros.backends.errors import BackendError

OPSET = 20
FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16
CODES = {"fp8": TensorProto.FLOAT8E4M3FN, "int8": TensorProto.INT8}

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
LAYOUT_OPS = frozenset(
    {"Cast", "Reshape", "Transpose", "Unsqueeze", "Squeeze", "Expand", "Identity"}
)


class GraphError(BackendError):
    """A graph broke a rule; the message lists every broken one."""


def onnx_type(dtype: torch.dtype) -> int:
    """ONNX element type of a torch dtype."""
    return int({torch.float32: FLOAT, torch.float16: HALF, torch.int32: TensorProto.INT32}[dtype])


@dataclass(frozen=True)
class Expectation:
    """What a stage's graph must contain.

    Attributes:
        activation: "fp16" or "fp32": type of activations outside the islands.
        quantized_matmuls: number of products with both (or, weight-only, one) quantized sides.
        kind: "fp8", "int8" or None for a stage without quantization.
        weight_only: activations are not quantized.
        outputs: name -> (ONNX element type, shape).

    """

    activation: str
    quantized_matmuls: int
    kind: str | None
    outputs: dict[str, tuple[int, tuple[int, ...]]]
    weight_only: bool = False


@dataclass
class GraphReport:
    """What was found in a graph that passed."""

    ops: dict[str, int] = field(default_factory=dict)
    matmuls: dict[str, int] = field(default_factory=dict)
    initializer_bytes: int = 0

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "ops": self.ops,
            "matmuls": self.matmuls,
            "initializer_bytes": self.initializer_bytes,
        }


class _Graph:
    """Lookups over one model."""

    def __init__(self, model: onnx.ModelProto) -> None:
        bare = onnx.ModelProto()
        bare.CopyFrom(model)
        del bare.graph.value_info[:]  # types are inferred, not taken from the exporter
        inferred = onnx.shape_inference.infer_shapes(bare, strict_mode=True, data_prop=True)
        graph = inferred.graph
        self.model = inferred
        self.nodes = list(graph.node)
        self.producer = {out: node for node in self.nodes for out in node.output if out}
        self.constants: dict[str, TensorProto] = {t.name: t for t in graph.initializer}
        for node in self.nodes:
            if node.op_type == "Constant":
                for attribute in node.attribute:
                    if attribute.name == "value":
                        self.constants[node.output[0]] = attribute.t
        self.types: dict[str, int] = {}
        self.shapes: dict[str, tuple[int | None, ...]] = {}
        for info in (*graph.value_info, *graph.input, *graph.output):
            tensor = info.type.tensor_type
            self.types[info.name] = tensor.elem_type
            self.shapes[info.name] = tuple(
                d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim
            )
        for name, tensor in self.constants.items():
            self.types[name] = tensor.data_type
            self.shapes[name] = tuple(tensor.dims)

    def type_name(self, value: str) -> str:
        code = self.types.get(value, 0)
        return str(TensorProto.DataType.Name(code))

    def source(self, value: str, through: frozenset[str]) -> NodeProto | None:
        """The node that makes a value, looking back through some operators."""
        node = self.producer.get(value)
        while node is not None and node.op_type in through:
            node = self.producer.get(node.input[0])
        return node


def load_graph(path: Path) -> onnx.ModelProto:
    """The graph without its external weights (small constants stay inline)."""
    return onnx.load(str(path), load_external_data=False)


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
        graph = _Graph(model)
    except onnx.shape_inference.InferenceError as error:
        raise GraphError(f"{name}: types do not fit together: {error}") from None
    report = GraphReport(ops=dict(Counter(node.op_type for node in graph.nodes)))
    problems = [
        *_vocabulary(graph),
        *_static_shapes(graph, expectation),
        *_initializers(graph, folder, report),
        *_islands(graph, expectation),
        *_quantizers(graph, expectation, folder),
        *_products(graph, expectation, report),
        *_softmax_inputs(graph),
    ]
    if problems:
        listed = "\n  ".join(problems[:20])
        more = f"\n  and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise GraphError(f"{name} breaks {len(problems)} rule(s):\n  {listed}{more}")
    return report


def _vocabulary(graph: _Graph) -> Iterator[str]:
    for opset in graph.model.opset_import:
        if opset.domain not in ("", "ai.onnx"):
            yield f"operators of domain {opset.domain!r}: only standard ONNX is allowed"
        elif opset.version != OPSET:
            yield f"opset {opset.version}, not {OPSET}"
    if graph.model.functions:
        yield "local functions; the graph must be flat"
    for node in graph.nodes:
        if node.domain not in ("", "ai.onnx") or node.op_type not in ALLOWED_OPS:
            domain = node.domain or "ai.onnx"
            yield f"operator {domain}.{node.op_type} ({node.name}) is not allowed"


def _static_shapes(graph: _Graph, expectation: Expectation) -> Iterator[str]:
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


def _values(tensor: TensorProto, folder: Path | None) -> np.ndarray:
    return numpy_helper.to_array(tensor, str(folder) if folder is not None else "")


def _initializers(graph: _Graph, folder: Path | None, report: GraphReport) -> Iterator[str]:
    for name, tensor in graph.constants.items():
        if tensor.data_type == TensorProto.FLOAT8E4M3FN and not (
            tensor.HasField("raw_data") or tensor.data_location == TensorProto.EXTERNAL
        ):
            yield f"FP8 constant {name} is not stored as raw bytes"
        values = _values(tensor, folder)
        report.initializer_bytes += values.nbytes
        if tensor.data_type in (FLOAT, HALF):
            finite = np.isfinite(values).all()
        elif tensor.data_type == TensorProto.FLOAT8E4M3FN:
            finite = not (np.bitwise_and(values.view(np.uint8), 0x7F) == 0x7F).any()
        else:
            continue
        if not finite:
            yield f"constant {name} holds NaN or infinity"


def _islands(graph: _Graph, expectation: Expectation) -> Iterator[str]:
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


def _quantizers(graph: _Graph, expectation: Expectation, folder: Path | None) -> Iterator[str]:
    activation = HALF if expectation.activation == "fp16" else FLOAT
    for node in graph.nodes:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        if expectation.kind is None:
            yield f"{node.op_type} ({node.name}) in a stage that is not quantized"
            continue
        quantizing = node.op_type == "QuantizeLinear"
        codes = CODES[expectation.kind]
        if len(node.input) < 3 or not node.input[2]:
            yield f"{node.name} has no zero point; TensorRT would take INT8"
            continue
        data, scale, zero = node.input[:3]
        if graph.types.get(zero) not in CODES.values():
            yield f"the zero point of {node.name} is {graph.type_name(zero)}, not a code type"
        coded = node.output[0] if quantizing else data
        plain = data if quantizing else node.output[0]
        if graph.types.get(coded) != codes:
            yield f"{node.name} has codes of type {graph.type_name(coded)}"
        if graph.types.get(scale) != activation or graph.types.get(plain) != activation:
            yield (
                f"{node.name} has scale {graph.type_name(scale)} and values "
                f"{graph.type_name(plain)}; both must be {expectation.activation}"
            )
        if scale not in graph.constants or zero not in graph.constants:
            yield f"scale or zero point of {node.name} is computed; it must be a constant"
            continue
        if not (_values(graph.constants[scale], folder) > 0).all():
            yield f"{node.name} has a scale that is not positive"
        if np.asarray(_values(graph.constants[zero], folder)).view(np.uint8).any():
            yield f"{node.name} has a zero point other than zero"
        if quantizing and graph.shapes[scale] not in ((), (1,)):
            yield f"activation quantizer {node.name} has one scale per channel"


def _products(graph: _Graph, expectation: Expectation, report: GraphReport) -> Iterator[str]:
    activation = "FLOAT16" if expectation.activation == "fp16" else "FLOAT"
    counts: Counter[str] = Counter()
    for node in graph.nodes:
        if node.op_type not in ("MatMul", "Gemm"):
            continue
        sources = [graph.source(value, LAYOUT_OPS) for value in node.input[:2]]
        dequantized = [s is not None and s.op_type == "DequantizeLinear" for s in sources]
        wanted = [False, True] if expectation.weight_only else [True, True]
        if any(dequantized):
            counts[expectation.kind or "quantized"] += 1
            if dequantized != wanted:
                yield f"{node.name} has quantized inputs {dequantized}, expected {wanted}"
            if graph.type_name(node.output[0]) != activation:
                yield f"quantized product {node.name} gives {graph.type_name(node.output[0])}"
        else:
            counts[graph.type_name(node.input[0])] += 1
    report.matmuls = dict(counts)
    found = counts[expectation.kind] if expectation.kind else 0
    if found != expectation.quantized_matmuls:
        yield f"{found} quantized products, expected {expectation.quantized_matmuls}"


def _softmax_inputs(graph: _Graph) -> Iterator[str]:
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
