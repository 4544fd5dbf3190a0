"""Read TensorRT's engine inspector: are the FP8 kernels really there, is no softmax in half?

Asking for FP8 without Q/DQ nodes, or a builder that drops them, gives an engine that works and
is not FP8. The JSON differs between releases: 10.x has "Format/Datatype" in one string, 11.x
splits it. Fused kernels name the ONNX nodes they came from in "Metadata".
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

FP8_WORDS = ("fp8", "e4m3")
HALF_WORDS = ("fp16", "half")
ISLAND_TYPES = ("softmax", "reduce")


@dataclass(frozen=True)
class EngineFacts:
    """What an engine's layers say.

    Attributes:
        layers: number of layers (kernels).
        fp8_matmuls: ONNX products that run in a layer with FP8 inputs.
        missing_fp8: expected ones that do not.
        half_islands: softmax or reduce layers that read half precision.
        detailed: False if the engine was built without detailed profiling, so nothing is known.

    """

    layers: int
    fp8_matmuls: int
    missing_fp8: list[str] = field(default_factory=list)
    half_islands: list[str] = field(default_factory=list)
    detailed: bool = True


def _types(layer: dict[str, Any], side: str) -> Iterator[str]:
    for tensor in layer.get(side, []):
        if isinstance(tensor, dict):
            for key in ("Format/Datatype", "Datatype", "DataType", "Format"):
                if key in tensor:
                    yield str(tensor[key]).lower()


def _mentions(words: tuple[str, ...], types: list[str]) -> bool:
    return any(word in text for word in words for text in types)


def _text(layer: dict[str, Any]) -> str:
    return f"{layer.get('Name', '')} {layer.get('Metadata', '')}"


def _names(layer: dict[str, Any]) -> set[str]:
    """ONNX node names in a layer's description, split at every mark TensorRT puts around them."""
    text = _text(layer)
    for mark in ("\x1e", "\x1f", "[ONNX Layer:", "]", "+", ",", "(", ")", "{", "}", " "):
        text = text.replace(mark, "\n")
    return {word.strip() for word in text.splitlines() if word.strip()}


def read_layers(text: str, expected_fp8: list[str]) -> EngineFacts:
    """Judge one engine.

    Args:
        text: JSON of the inspector.
        expected_fp8: names of the ONNX products that must run in FP8.

    """
    document = json.loads(text)
    layers = document.get("Layers", [])
    detailed = [layer for layer in layers if isinstance(layer, dict)]
    if layers and not detailed:
        return EngineFacts(len(layers), 0, list(expected_fp8), [], detailed=False)
    fp8_names: set[str] = set()
    anonymous = 0
    half_islands = []
    for layer in detailed:
        inputs = list(_types(layer, "Inputs"))
        kind = str(layer.get("LayerType", "")).lower()
        if _mentions(FP8_WORDS, inputs):
            names = {name for name in _names(layer) if name in set(expected_fp8)}
            fp8_names |= names
            if not names and ("gemm" in kind or "matmul" in kind or "matrix" in kind):
                anonymous += 1
        if any(word in kind for word in ISLAND_TYPES) and _mentions(HALF_WORDS, inputs):
            half_islands.append(str(layer.get("Name", kind)))
    missing = [name for name in expected_fp8 if name not in fp8_names]
    # Kernels whose origin is not told count for that many unnamed products.
    found = min(len(expected_fp8), len(fp8_names) + anonymous)
    return EngineFacts(
        len(detailed), found, missing if found < len(expected_fp8) else [], half_islands
    )


def quantised_products(onnx_path: str) -> list[str]:
    """Names of the products in a graph that read dequantised values."""
    import onnx

    graph = onnx.load(onnx_path, load_external_data=False).graph
    dequantized = {
        value for node in graph.node if node.op_type == "DequantizeLinear" for value in node.output
    }
    return [
        node.name
        for node in graph.node
        if node.op_type == "MatMul" and dequantized.intersection(node.input)
    ]
