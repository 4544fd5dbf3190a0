"""NVFP4 in ONNX: FP4 weights with block scales, inputs quantized by TensorRT's own operator.

The exporter writes two placeholders of domain ``pi05_ros``; here they become

    x  -> trt.TRT_FP4DynamicQuantize -> codes FP4, block scales FP8 -> DequantizeLinear -> Cast
    w  =  codes FP4, block scales FP8, one float32 scale -> DequantizeLinear -> Cast, Transpose

with blocks of 16 along the summed axis. The product of two such sides is one FP4 kernel: block and
tensor scales are applied inside it. FP4 tensors need opset 23.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pi05_ros.backends.quantization.presets import FP4_BLOCK

DOMAIN = "pi05_ros"  # of the placeholders
TRT_DOMAIN = "trt"
TRT_QUANTIZE = "TRT_FP4DynamicQuantize"
OPSET = 23
IR_VERSION = 11
INPUT, WEIGHT = "Fp4Input", "Fp4Weight"
# E2M1: sign, two exponent bits, one mantissa bit.
E2M1 = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0], dtype=np.float32)


def placeholders() -> tuple[Any, Any]:
    """Translations of `fake_quantize_fp4` and `dequantize_fp4` for the exporter."""
    from onnxscript.values import Op, Opset

    opset = Opset(DOMAIN, 1)
    quantize = Op(opset, INPUT, _schema(INPUT, ("x", "scale")))
    weights = Op(opset, WEIGHT, _schema(WEIGHT, ("codes", "scales", "scale")))

    def fake_quantize_fp4(x: Any, scale: Any) -> Any:
        return quantize(x, scale)

    def dequantize_fp4(codes: Any, scales: Any, scale: Any, half: bool) -> Any:
        return weights(codes, scales, scale)

    return fake_quantize_fp4, dequantize_fp4


def _schema(name: str, inputs: tuple[str, ...]) -> Any:
    """Schema of a placeholder: inputs of any type, one output."""
    from onnx.defs import OpSchema

    types = [f"tensor({word})" for word in ("float", "float16", "float8e4m3fn")]
    constraints = [(f"T{index}", types, "") for index in range(len(inputs) + 1)]
    parameter = OpSchema.FormalParameter
    return OpSchema(
        name,
        DOMAIN,
        1,
        inputs=[parameter(word, f"T{index}") for index, word in enumerate(inputs)],
        outputs=[parameter("y", f"T{len(inputs)}")],
        type_constraints=constraints,
    )


def pack_e2m1(values: np.ndarray) -> np.ndarray:
    """E2M1 values as nibbles, two a byte, the first in the low one; uint8 ``[size / 2]``."""
    flat = np.asarray(values, dtype=np.float32).reshape(-1)
    code = np.searchsorted(E2M1, np.abs(flat)).astype(np.uint8)
    code |= np.signbit(flat).astype(np.uint8) << 3
    return code[0::2] | (code[1::2] << 4)


def write_fp4(model: Any) -> int:
    """Replace the placeholders of an ``onnx_ir`` model in place; returns how many."""
    import onnx_ir as ir

    count = 0
    for node in list(model.graph):
        if node.domain != DOMAIN:
            continue
        count += 1
        result = node.outputs[0]
        make = _weight_nodes if node.op_type == WEIGHT else _input_nodes
        nodes = make(ir, model.graph, node)
        model.graph.insert_before(node, nodes)
        ir.convenience.replace_all_uses_with(result, nodes[-1].outputs[0])
        model.graph.remove(node, safe=True)
    if count:
        model.opset_imports.pop(DOMAIN, None)
        model.opset_imports[""] = OPSET
        model.opset_imports[TRT_DOMAIN] = 1
        model.ir_version = IR_VERSION
    return count


def _finish(ir: Any, node: Any, value: Any, steps: list[Any]) -> list[Any]:
    """Cast to the type of the product's other values."""
    result = node.outputs[0]
    dtype = result.dtype or ir.DataType.FLOAT16
    cast = ir.node("Cast", [value], {"to": int(dtype)}, name=f"{node.name}/Cast")
    cast.outputs[0].dtype = dtype
    return [*steps, cast]


def _input_nodes(ir: Any, graph: Any, node: Any) -> list[Any]:
    x, scale = node.inputs
    quantize = ir.Node(
        TRT_DOMAIN,
        TRT_QUANTIZE,
        [x, scale],
        [
            ir.AttrInt64("axis", -1),
            ir.AttrInt64("block_size", FP4_BLOCK),
            ir.AttrInt64("scale_type", int(ir.DataType.FLOAT8E4M3FN)),
        ],
        num_outputs=2,
        name=f"{node.name}/Quantize",
    )
    codes, scales = quantize.outputs
    codes.name, scales.name = f"{node.name}_codes", f"{node.name}_scales"
    codes.dtype, scales.dtype = ir.DataType.FLOAT4E2M1, ir.DataType.FLOAT8E4M3FN
    codes.shape = x.shape
    scales.shape = ir.Shape([*x.shape[:-1], int(x.shape[-1]) // FP4_BLOCK])
    widen = ir.node("DequantizeLinear", [scales, scale], name=f"{node.name}/Scales")
    back = ir.node(
        "DequantizeLinear",
        [codes, widen.outputs[0]],
        {"axis": -1, "block_size": FP4_BLOCK},
        name=f"{node.name}/DequantizeLinear",
    )
    return _finish(ir, node, back.outputs[0], [quantize, widen, back])


def _weight_nodes(ir: Any, graph: Any, node: Any) -> list[Any]:
    codes, scales, scale = node.inputs
    values = codes.const_value.numpy().astype(np.float32)
    packed = ir.PackedTensor(
        pack_e2m1(values), ir.DataType.FLOAT4E2M1, shape=ir.Shape(values.shape)
    )
    fp4 = ir.Value(
        name=f"{codes.name}_fp4",
        shape=ir.Shape(values.shape),
        type=ir.TensorType(ir.DataType.FLOAT4E2M1),
        const_value=packed,
    )
    graph.register_initializer(fp4)
    widen = ir.node("DequantizeLinear", [scales, scale], name=f"{node.name}/Scales")
    back = ir.node(
        "DequantizeLinear",
        [fp4, widen.outputs[0]],
        {"axis": 1, "block_size": FP4_BLOCK},
        name=f"{node.name}/DequantizeLinear",
    )
    turn = ir.node("Transpose", [back.outputs[0]], {"perm": [1, 0]}, name=f"{node.name}/Transpose")
    graph.initializers.pop(codes.name, None)
    return _finish(ir, node, turn.outputs[0], [widen, back, turn])
