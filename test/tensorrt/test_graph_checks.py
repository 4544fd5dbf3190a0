"""Every graph check must be able to fail: one mutation per rule."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from pi05_ros.backends.export.export_document import DTYPES
from pi05_ros.backends.export.graph_checks import GraphError, check_graph, check_model
from pi05_ros.backends.export.onnx_graph import Expectation, onnx_type
from pi05_ros.backends.staged.shapes import StageShapes, stage_spec


def expectation(shapes: StageShapes, stage: str, count: int) -> Expectation:
    spec = stage_spec(stage, shapes, DTYPES["fp16"])
    return Expectation(
        activation="fp16",
        quantized_matmuls=count,
        kind="fp8",
        outputs={t.name: (onnx_type(t.dtype), t.shape) for t in spec.outputs},
    )


def first(model: ModelProto, op_type: str, name: str = "") -> NodeProto:
    return next(n for n in model.graph.node if n.op_type == op_type and name in n.name)


def insert_before(model: ModelProto, node: NodeProto, new: list[NodeProto]) -> None:
    position = next(i for i, n in enumerate(model.graph.node) if n.name == node.name)
    for offset, extra in enumerate(new):
        model.graph.node.insert(position + offset, extra)


def cast(value: str, to: int, name: str) -> NodeProto:
    return helper.make_node("Cast", [value], [name], name=name, to=to)


def initializer(model: ModelProto, name: str) -> TensorProto:
    return next(t for t in model.graph.initializer if t.name == name)


def half_softmax(model: ModelProto) -> None:
    node = first(model, "Softmax")
    source, result = node.input[0], node.output[0]
    insert_before(model, node, [cast(source, TensorProto.FLOAT16, "half_in")])
    node.input[0] = "half_in"
    node.output[0] = "half_out"
    index = next(i for i, n in enumerate(model.graph.node) if n.name == node.name)
    model.graph.node.insert(index + 1, cast("half_out", TensorProto.FLOAT, "back"))
    for other in model.graph.node:
        for position, value in enumerate(other.input):
            if value == result:
                other.input[position] = "back"


def half_cosine(model: ModelProto) -> None:
    node = first(model, "Cos")
    result = node.output[0]
    node.output[0] = "cos32"
    index = next(i for i, n in enumerate(model.graph.node) if n.name == node.name)
    model.graph.node.insert(index + 1, cast("cos32", TensorProto.FLOAT16, "cos16"))
    model.graph.node.insert(index + 2, cast("cos16", TensorProto.FLOAT, result))


def half_mask(model: ModelProto) -> None:
    softmax = first(model, "Softmax")
    add = next(n for n in model.graph.node if softmax.input[0] in n.output)
    sources = [f"{value}_half" for value in add.input]
    insert_before(
        model,
        add,
        [cast(v, TensorProto.FLOAT16, s) for v, s in zip(add.input, sources, strict=True)],
    )
    result = add.output[0]
    del add.input[:]
    add.input.extend(sources)
    add.output[0] = "half_logits"
    insert_before(model, softmax, [cast("half_logits", TensorProto.FLOAT, result)])


def half_norm(model: ModelProto) -> None:
    node = first(model, "ReduceMean")
    source, result = node.input[0], node.output[0]
    insert_before(model, node, [cast(source, TensorProto.FLOAT16, "norm_half")])
    node.input[0] = "norm_half"
    node.output[0] = "mean_half"
    index = next(i for i, n in enumerate(model.graph.node) if n.name == node.name)
    model.graph.node.insert(index + 1, cast("mean_half", TensorProto.FLOAT, result))


def unscaled_query(model: ModelProto) -> None:
    softmax = first(model, "Softmax")
    add = next(n for n in model.graph.node if softmax.input[0] in n.output)
    current = add.input[0]
    while True:
        node = next(n for n in model.graph.node if current in n.output)
        if node.op_type == "MatMul":
            break
        current = node.input[0]
    current = node.input[0]
    while True:
        node = next(n for n in model.graph.node if current in n.output)
        if node.op_type == "Mul":
            break
        current = node.input[0]
    node.op_type = "Add"


def missing_zero_point(model: ModelProto) -> None:
    del first(model, "QuantizeLinear").input[2:]


def replace_parameter(model: ModelProto, position: int, tensor: TensorProto) -> None:
    """Scale (1) or zero point (2) of an activation's quantizer and dequantizer."""
    quantize = first(model, "QuantizeLinear")
    model.graph.initializer.append(tensor)
    for node in model.graph.node:
        pair = node.op_type == "DequantizeLinear" and node.input[0] == quantize.output[0]
        if node.name == quantize.name or pair:
            node.input[position] = tensor.name


def int8_zero_point(model: ModelProto) -> None:
    replace_parameter(model, 2, helper.make_tensor("z", TensorProto.INT8, [], bytes(1), raw=True))


def uint8_zero_point(model: ModelProto) -> None:
    replace_parameter(model, 2, helper.make_tensor("z", TensorProto.UINT8, [], bytes(1), raw=True))


def shifted_zero_point(model: ModelProto) -> None:
    tensor = helper.make_tensor("z", TensorProto.FLOAT8E4M3FN, [], b"\x01", raw=True)
    replace_parameter(model, 2, tensor)


def scale_per_channel(model: ModelProto) -> None:
    replace_parameter(model, 1, numpy_helper.from_array(np.ones(64, np.float16), "scales"))


def computed_scale(model: ModelProto) -> None:
    node = first(model, "QuantizeLinear")
    insert_before(model, node, [helper.make_node("Identity", [node.input[1]], ["scale"], "same")])
    node.input[1] = "scale"


def codes_as_numbers(model: ModelProto) -> None:
    tensor = next(
        t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT8E4M3FN and t.dims
    )
    numbers = list(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.int32_data.extend(numbers)


def local_function(model: ModelProto) -> None:
    node = helper.make_node("Neg", ["a"], ["b"])
    opset = [helper.make_opsetid("", 20)]
    model.functions.append(helper.make_function("ours", "f", ["a"], ["b"], [node], opset))


def softmax_of_a_constant(model: ModelProto) -> None:
    node = first(model, "Softmax")
    inferred = onnx.shape_inference.infer_shapes(model).graph.value_info
    shape = next(v for v in inferred if v.name == node.input[0]).type.tensor_type.shape
    values = np.zeros([d.dim_value for d in shape.dim], np.float32)
    model.graph.initializer.append(numpy_helper.from_array(values, "logits"))
    node.input[0] = "logits"


def missing_output(model: ModelProto) -> None:
    del model.graph.output[1]


def negative_scale(model: ModelProto) -> None:
    tensor = initializer(model, first(model, "QuantizeLinear").input[1])
    values = -numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(values), tensor.name))


def dropped_quantizer(model: ModelProto) -> None:
    """One product reads the plain activation: the silent way to lose FP8."""
    product = first(model, "MatMul", "gate_proj")
    dequantize = next(n for n in model.graph.node if product.input[0] in n.output)
    quantize = next(n for n in model.graph.node if dequantize.input[0] in n.output)
    product.input[0] = quantize.input[0]


def missing_layer(model: ModelProto) -> None:
    """A whole product that is no longer quantized."""
    product = first(model, "MatMul", "up_proj")
    shape = (64, 128)
    weight = np.zeros(shape, dtype=np.float16)
    model.graph.initializer.append(numpy_helper.from_array(weight, "plain_weight"))
    dequantize = next(n for n in model.graph.node if product.input[0] in n.output)
    quantize = next(n for n in model.graph.node if dequantize.input[0] in n.output)
    product.input[0] = quantize.input[0]
    product.input[1] = "plain_weight"


def infinite_constant(model: ModelProto) -> None:
    tensor = next(t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT16)
    values = np.array(numpy_helper.to_array(tensor))
    values.flat[0] = np.inf
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def nan_code(model: ModelProto) -> None:
    tensor = next(
        t
        for t in model.graph.initializer
        if t.data_type == TensorProto.FLOAT8E4M3FN and len(t.raw_data) > 100
    )
    tensor.raw_data = b"\x7f" + tensor.raw_data[1:]


def dynamic_input(model: ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "tokens"


def foreign_domain(model: ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("trt", 1))
    first(model, "Softmax").domain = "trt"


def newer_opset(model: ModelProto) -> None:
    model.opset_import[0].version = 23


def operator_of_newer_parsers(model: ModelProto) -> None:
    node = first(model, "Gelu")
    node.op_type = "Sigmoid"
    del node.attribute[:]


def wrong_output_type(model: ModelProto) -> None:
    output = model.graph.output[0]
    producer = next(n for n in model.graph.node if output.name in n.output)
    producer.output[list(producer.output).index(output.name)] = "inner_keys"
    model.graph.node.append(cast("inner_keys", TensorProto.FLOAT, output.name))
    output.type.tensor_type.elem_type = TensorProto.FLOAT


def scaled_weight(model: ModelProto, linear: str, scale: np.ndarray) -> None:
    """Another scale on the weight of one product."""
    product = first(model, "MatMul", linear)
    dequantize = next(n for n in model.graph.node if product.input[1] in n.output)
    names = f"{linear}_scale", f"{linear}_zero"
    zero = helper.make_tensor(
        names[1], TensorProto.FLOAT8E4M3FN, scale.shape, bytes(scale.size), raw=True
    )
    model.graph.initializer.extend([numpy_helper.from_array(scale, names[0]), zero])
    dequantize.input[1], dequantize.input[2] = names
    if scale.ndim:
        dequantize.attribute.append(helper.make_attribute("axis", 1))


def weight_scale_per_channel(model: ModelProto) -> None:
    """The form that stores the bare sum of codes."""
    scaled_weight(model, "down_proj", np.full(64, 2.0**-12, np.float16))


def unequal_weight_scales(model: ModelProto) -> None:
    """Gate and up have one input: compilers merge them."""
    scaled_weight(model, "up_proj", np.asarray(2.0**-12, np.float16))


def shrinking_gain(model: ModelProto) -> None:
    """A stored product far above the result."""
    scaled_weight(model, "down_proj", np.asarray(16.0, np.float16))
    gain = next(
        value
        for node in model.graph.node
        if node.op_type == "Mul" and "down_proj" in node.name
        for value in node.input
        if value in {t.name for t in model.graph.initializer}
    )
    tensor = initializer(model, gain)
    values = np.full(tuple(tensor.dims), 2.0**-10, np.float16)
    tensor.CopyFrom(numpy_helper.from_array(values, gain))


MUTATIONS: list[tuple[Callable[[ModelProto], None], str]] = [
    (half_softmax, "Softmax .* runs in FLOAT16"),
    (half_cosine, "rounded before the rotation"),
    (half_mask, "mask of .* half precision"),
    (half_norm, "ReduceMean .* runs in FLOAT16"),
    (unscaled_query, "is not scaled before the product"),
    (missing_zero_point, "has no zero point"),
    (int8_zero_point, "codes of type INT8"),
    (uint8_zero_point, "is UINT8, not a code type"),
    (shifted_zero_point, "zero point other than zero"),
    (scale_per_channel, "has one scale per channel"),
    (weight_scale_per_channel, "bare sum of codes, which overflows"),
    (unequal_weight_scales, "one input and different weight scales"),
    (shrinking_gain, "half precision ends at 65504"),
    (computed_scale, "is computed; it must be a constant"),
    (codes_as_numbers, "is not stored as raw bytes"),
    (local_function, "the graph must be flat"),
    (softmax_of_a_constant, "reads nothing where the product of Q and K was expected"),
    (missing_output, "output values is missing"),
    (negative_scale, "scale that is not positive"),
    (dropped_quantizer, r"quantized inputs \[False, True\]"),
    (missing_layer, "quantized products, expected"),
    (infinite_constant, "NaN or infinity"),
    (nan_code, "NaN or infinity"),
    (dynamic_input, "is not static|do not fit"),
    (foreign_domain, "only standard ONNX"),
    (newer_opset, "opset 23"),
    (operator_of_newer_parsers, "Sigmoid .* not allowed"),
    (wrong_output_type, "output keys is FLOAT"),
]


@pytest.mark.parametrize(
    ("mutate", "message"), MUTATIONS, ids=[mutate.__name__ for mutate, _ in MUTATIONS]
)
def test_mutation_is_caught(
    mutate: Callable[[ModelProto], None], message: str, graphs_fp16: Path, shapes: StageShapes
) -> None:
    model = onnx.load(str(graphs_fp16 / "prefill.onnx"))
    expected = expectation(shapes, "prefill", 7 * (shapes.depth - 1) + 2)
    check_model(model, expected, None, "untouched")
    mutate(model)
    with pytest.raises(GraphError, match=message):
        check_model(model, expected, None, "mutated")


def test_quantizers_in_a_plain_stage_are_reported(graphs_fp16: Path, shapes: StageShapes) -> None:
    spec = stage_spec("denoise_step", shapes, DTYPES["fp16"])
    plain = Expectation(
        "fp16", 0, None, {t.name: (onnx_type(t.dtype), t.shape) for t in spec.outputs}
    )
    with pytest.raises(GraphError, match="in a stage that is not quantized"):
        check_graph(graphs_fp16 / "denoise_step.onnx", plain)


def test_broken_file_is_a_graph_error(tmp_path: Path, shapes: StageShapes) -> None:
    graph = helper.make_graph(
        [helper.make_node("Nonsense", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    onnx.save(model, str(tmp_path / "bad.onnx"))
    with pytest.raises(GraphError, match="not a valid ONNX model"):
        check_graph(tmp_path / "bad.onnx", expectation(shapes, "prefill", 1))
