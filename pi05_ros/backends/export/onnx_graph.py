"""Lookups over one ONNX graph with inferred types: producers, constants, shapes.

Also what a graph must contain, which all checks read.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import NodeProto, TensorProto, numpy_helper

from pi05_ros.backends.export.fp4_graph import TRT_DOMAIN

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16
CODES = {"fp8": TensorProto.FLOAT8E4M3FN, "int8": TensorProto.INT8}
LAYOUT_OPS = frozenset(
    {"Cast", "Reshape", "Transpose", "Unsqueeze", "Squeeze", "Expand", "Identity"}
)


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
        fp4: some of the products are NVFP4: opset 23 and TensorRT's own quantizer are allowed.

    """

    activation: str
    quantized_matmuls: int
    kind: str | None
    outputs: dict[str, tuple[int, tuple[int, ...]]]
    weight_only: bool = False
    fp4: bool = False


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


class GraphView:
    """Lookups over one model."""

    def __init__(self, model: onnx.ModelProto) -> None:
        bare = onnx.ModelProto()
        bare.CopyFrom(model)
        # Types are inferred, not taken from the exporter; ONNX knows no types of operators that
        # are TensorRT's own.
        own = {v for n in bare.graph.node if n.domain == TRT_DOMAIN for v in n.output}
        kept = [info for info in bare.graph.value_info if info.name in own]
        del bare.graph.value_info[:]
        bare.graph.value_info.extend(kept)
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
        """Element type of a value in ONNX's words."""
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


def constant_values(tensor: TensorProto, folder: Path | None) -> np.ndarray:
    """Content of a constant; external data is read from ``folder``."""
    return numpy_helper.to_array(tensor, str(folder) if folder is not None else "")
