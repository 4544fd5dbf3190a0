"""Checks of Q/DQ nodes and of the products between them.

The form of a quantized product decides where a compiler applies its scales. One scalar weight
scale is multiplied into the float32 accumulator; a scale per channel is applied behind the
product, whose stored result is then the bare sum of codes: at real widths beyond the range of
float16 for more than half of the elements.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from onnx import NodeProto, TensorProto

from pi05_ros.backends.export.onnx_graph import (
    CODES,
    FLOAT,
    HALF,
    LAYOUT_OPS,
    Expectation,
    GraphReport,
    GraphView,
    constant_values,
)
from pi05_ros.backends.quantization.fake_quant import LARGEST

LARGEST_HALF = 65504.0


def quantizer_problems(
    graph: GraphView, expectation: Expectation, folder: Path | None
) -> Iterator[str]:
    """Types, zero points and scales of every QuantizeLinear and DequantizeLinear."""
    activation = HALF if expectation.activation == "fp16" else FLOAT
    for node in graph.nodes:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        if expectation.kind is None:
            yield f"{node.op_type} ({node.name}) in a stage that is not quantized"
            continue
        if expectation.fp4 and _of_blocks(graph, node):
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
        if not (constant_values(graph.constants[scale], folder) > 0).all():
            yield f"{node.name} has a scale that is not positive"
        if np.asarray(constant_values(graph.constants[zero], folder)).view(np.uint8).any():
            yield f"{node.name} has a zero point other than zero"
        if quantizing and graph.shapes[scale] not in ((), (1,)):
            yield f"activation quantizer {node.name} has one scale per channel"


def _of_blocks(graph: GraphView, node: NodeProto) -> bool:
    """Whether a DequantizeLinear is of an FP4 tensor, or of the block scales of one."""
    if any(attribute.name == "block_size" for attribute in node.attribute):
        return graph.types.get(node.input[0]) == TensorProto.FLOAT4E2M1
    users = [user for user in graph.nodes if node.output[0] in user.input]
    return bool(users) and all(
        user.op_type == "DequantizeLinear" and _of_blocks(graph, user) for user in users
    )


def product_problems(
    graph: GraphView, expectation: Expectation, report: GraphReport
) -> Iterator[str]:
    """Number and types of products; which sides are quantized. Counts go into ``report``."""
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


def scale_problems(
    graph: GraphView, expectation: Expectation, folder: Path | None
) -> Iterator[str]:
    """Quantized products that a compiled engine would store as bare sums of codes."""
    if expectation.weight_only or expectation.kind is None:
        return
    of_input: dict[str, dict[float, str]] = {}
    for node in graph.nodes:
        if node.op_type != "MatMul":
            continue
        inputs, weights = (graph.source(value, LAYOUT_OPS) for value in node.input[:2])
        sides = [side for side in (inputs, weights) if side is not None]
        if len(sides) < 2 or any(side.op_type != "DequantizeLinear" for side in sides):
            continue
        scales = [graph.constants.get(side.input[1]) for side in sides]
        if any(scale is None for scale in scales):
            continue  # named by `quantizer_problems`
        values = [constant_values(scale, folder) for scale in scales if scale is not None]
        if values[0].size != 1:
            continue  # named by `quantizer_problems`
        if values[1].size != 1:
            yield (
                f"{node.name} has a weight scale per channel {values[1].shape}; engines would "
                "store the bare sum of codes, which overflows half precision. Scale the weight by "
                "one number and multiply the product by the gain of each channel"
            )
            continue
        weight_scale = float(values[1].reshape(-1)[0])
        if sides[1].input[0] in graph.constants:
            of_input.setdefault(node.input[0], {}).setdefault(weight_scale, node.name)
        if expectation.activation == "fp16":
            scale = float(values[0].reshape(-1)[0]) * weight_scale
            yield from _overflow(graph, node, expectation, folder, scale)
    for scales_of in of_input.values():
        if len(scales_of) > 1:
            names = ", ".join(scales_of.values())
            yield (
                f"{names} have one input and different weight scales; compilers merge them and "
                "would store the bare sum of codes"
            )


def _overflow(
    graph: GraphView, node: NodeProto, expectation: Expectation, folder: Path | None, scale: float
) -> Iterator[str]:
    """A stored product larger than the result it is scaled to must be safe by its bound."""
    users = [user for user in graph.nodes if node.output[0] in user.input]
    gains = [
        graph.constants[value]
        for user in users
        if user.op_type == "Mul"
        for value in user.input
        if value in graph.constants
    ]
    smallest = min((float(np.abs(constant_values(g, folder)).min()) for g in gains), default=1.0)
    if smallest >= 1.0:
        return
    length = graph.shapes[node.input[1]][-2]
    bound = LARGEST[str(expectation.kind)] ** 2 * (length or 0) * scale
    if bound > LARGEST_HALF:
        yield (
            f"{node.name} is stored before a gain of {smallest:.3g} and can reach {bound:.3g}; "
            "half precision ends at 65504"
        )
