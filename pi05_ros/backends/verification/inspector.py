"""Read TensorRT's engine inspector: are the FP8 kernels really there, is no softmax in half?

Asking for FP8 without Q/DQ nodes, or a builder that drops them, gives an engine that works and
is not FP8; the same goes for INT8. The JSON differs between releases: 10.x has "Format/Datatype"
in one string, 11.x splits it. Fused kernels name the ONNX nodes they came from in "Metadata".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pi05_ros.small_files import parse_json

CODE_WORDS = {"fp8": ("fp8", "e4m3"), "int8": ("int8",)}
HALF_WORDS = ("fp16", "half")
ISLAND_TYPES = ("softmax", "reduce")


@dataclass(frozen=True)
class EngineFacts:
    """What an engine's layers say.

    Attributes:
        layers: number of layers (kernels).
        quantized: ONNX products that run in a layer with quantized inputs.
        missing: expected ones that do not.
        half_islands: softmax or reduce layers that read half precision.
        detailed: False if the engine was built without detailed profiling, so nothing is known.

    """

    layers: int
    quantized: int
    missing: list[str] = field(default_factory=list)
    half_islands: list[str] = field(default_factory=list)
    detailed: bool = True


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
        text: JSON of the inspector.
        expected: names of the ONNX products that must run on quantized inputs.
        kind: their number type, "fp8" or "int8".

    """
    layers = _list(parse_json(text, "the inspector's report"), "Layers")
    detailed = [layer for layer in layers if isinstance(layer, dict)]
    if not detailed:
        return EngineFacts(len(layers), 0, list(expected), [], detailed=False)
    named: set[str] = set()
    anonymous = 0
    half_islands = []
    for layer in detailed:
        inputs = list(_types(layer, "Inputs"))
        layer_type = str(layer.get("LayerType", "")).lower()
        if _mentions(CODE_WORDS[kind], inputs):
            names = _names(layer).intersection(expected)
            named |= names
            if not names and any(word in layer_type for word in ("gemm", "matmul", "matrix")):
                anonymous += 1
        if any(word in layer_type for word in ISLAND_TYPES) and _mentions(HALF_WORDS, inputs):
            half_islands.append(str(layer.get("Name", layer_type)))
    missing = [name for name in expected if name not in named]
    # Kernels whose origin is not told count for that many unnamed products.
    found = min(len(expected), len(named) + anonymous)
    return EngineFacts(
        len(detailed), found, missing if found < len(expected) else [], half_islands
    )


def quantized_products(onnx_path: str) -> list[str]:
    """Names of the products in a graph whose two sides are quantized.

    Products of which only the weights are (preset w8a16) run in half precision.
    """
    import onnx

    graph = onnx.load(onnx_path, load_external_data=False).graph
    dequantized = {
        value for node in graph.node if node.op_type == "DequantizeLinear" for value in node.output
    }
    return [
        node.name
        for node in graph.node
        if node.op_type == "MatMul" and dequantized.issuperset(node.input)
    ]
