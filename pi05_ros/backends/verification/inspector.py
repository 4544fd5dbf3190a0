"""Judge the kernels of an engine: are the FP8 products there, is no softmax in half?

Asking for FP8 without Q/DQ nodes, or a builder that drops them, gives an engine that works and
is not FP8; the same goes for INT8. The kernels come from the engine inspector or from the log of
the builder (`kernels`), with the types of the parsed network beside them. The JSON differs between
releases: 10.x has "Format/Datatype" in one string, 11.x splits it. Fused kernels name the ONNX
nodes they came from in "Metadata".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pi05_ros.backends.verification.kernels import half_island, is_copy, is_fused_attention
from pi05_ros.small_files import parse_json

CODE_WORDS = {"fp8": ("fp8", "e4m3"), "int8": ("int8",)}
HALF_WORDS = ("fp16", "half")
DOUBLE_WORDS = ("fp64", "double")
ISLAND_TYPES = ("softmax", "reduce")


@dataclass(frozen=True)
class EngineFacts:
    """What an engine's layers say.

    Attributes:
        layers: number of layers (kernels).
        quantized: ONNX products that run in a layer with quantized inputs.
        missing: expected ones that do not.
        half_islands: softmax or norm statistics in half precision, by kernel or network layer.
        detailed: False if the engine was built without detailed profiling, so nothing is known.
        bare_codes: products that store a sum of codes in half precision and scale it afterwards.
        attentions: softmax layers of the network, 0 if it was not looked at.
        fused_attentions: kernels that hold a whole attention.
        copies: kernels that only move or convert values.
        doubles: kernels with float64 values.

    """

    layers: int
    quantized: int
    missing: list[str] = field(default_factory=list)
    half_islands: list[str] = field(default_factory=list)
    detailed: bool = True
    bare_codes: list[str] = field(default_factory=list)
    attentions: int = 0
    fused_attentions: int = 0
    copies: int = 0
    doubles: list[str] = field(default_factory=list)


def _list(document: Any, key: str) -> list[Any]:
    """A list inside a mapping; empty if there is none."""
    found = document.get(key) if isinstance(document, dict) else None
    return found if isinstance(found, list) else []


def _types(layer: dict[str, Any], side: str) -> Iterator[str]:
    for tensor in _list(layer, side):
        if isinstance(tensor, dict):
            for key in ("Format/Datatype", "Datatype", "DataType", "Format"):
                if key in tensor:
                    yield str(tensor[key]).lower()


def _mentions(words: tuple[str, ...], types: list[str]) -> bool:
    return any(word in text for word in words for text in types)


def _names(layer: dict[str, Any]) -> set[str]:
    """ONNX node names in a layer's description, split at every mark TensorRT puts around them."""
    text = f"{layer.get('Name', '')} {layer.get('Metadata', '')}"
    for mark in ("\x1e", "\x1f", "[ONNX Layer:", "]", "+", ",", "(", ")", "{", "}", " "):
        text = text.replace(mark, "\n")
    return {word.strip() for word in text.splitlines() if word.strip()}


def read_layers(text: str, expected: list[str], kind: str = "fp8") -> EngineFacts:
    """Judge one engine.

    Args:
        text: JSON of the inspector, or of `plan_compiler.Plan.layers`.
        expected: names of the ONNX products that must run on quantized inputs.
        kind: their number type, "fp8" or "int8".

    """
    document = parse_json(text, "the list of kernels")
    layers = _list(document, "Layers")
    network = document.get("Network") if isinstance(document, dict) else None
    detailed = [layer for layer in layers if isinstance(layer, dict)]
    if not detailed:
        return EngineFacts(len(layers), 0, list(expected), [], detailed=False)
    named: set[str] = set()
    anonymous = 0
    half_islands = [str(name) for name in _list(network, "half_islands")]
    doubles = []
    for layer in detailed:
        inputs = list(_types(layer, "Inputs"))
        layer_type = str(layer.get("LayerType", "")).lower()
        if _mentions(CODE_WORDS[kind], inputs):
            names = _names(layer).intersection(expected)
            named |= names
            if not names and any(word in layer_type for word in ("gemm", "matmul", "matrix")):
                anonymous += 1
        island = any(word in layer_type for word in ISLAND_TYPES)
        if (island and _mentions(HALF_WORDS, inputs)) or half_island(layer):
            half_islands.append(str(layer.get("Name", layer_type)))
        if _mentions(DOUBLE_WORDS, [*inputs, *_types(layer, "Outputs")]):
            doubles.append(str(layer.get("Name", layer_type)))
    missing = [name for name in expected if name not in named]
    # Kernels whose origin is not told count for that many unnamed products.
    found = min(len(expected), len(named) + anonymous)
    return EngineFacts(
        len(detailed),
        found,
        missing if found < len(expected) else [],
        half_islands,
        bare_codes=[str(name) for name in _list(network, "bare_codes")],
        attentions=len(_list(network, "softmax")),
        fused_attentions=sum(is_fused_attention(layer) for layer in detailed),
        copies=sum(is_copy(layer) for layer in detailed),
        doubles=doubles,
    )


def quantized_products(onnx_path: str) -> list[str]:
    """Names of the products in a graph whose two sides are quantized.

    Products of which only the weights are (preset w8a16) run in half precision. FP4 sides come
    through a Cast and a Transpose.
    """
    import onnx

    graph = onnx.load(onnx_path, load_external_data=False).graph
    dequantized = {
        value for node in graph.node if node.op_type == "DequantizeLinear" for value in node.output
    }
    for node in graph.node:
        if node.op_type in ("Cast", "Transpose") and node.input[0] in dequantized:
            dequantized.add(node.output[0])
    return [
        node.name
        for node in graph.node
        if node.op_type == "MatMul" and dequantized.issuperset(node.input)
    ]
