"""Types in the network that TensorRT parsed from a graph, before anything is fused.

Networks are strongly typed, so what stands here binds the compiler; unlike in the list of kernels
nothing is hidden inside a fused one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tensorrt as trt

# Layers that must compute in float32, and of unary ones those of norms and rotary angles.
FLOAT_LAYERS = ("SOFTMAX", "REDUCE", "NORMALIZATION")
LAYOUT = ("SHUFFLE", "UNSQUEEZE", "SQUEEZE", "IDENTITY")
FLOAT_UNARY = ("SQRT", "RECIP", "EXP", "COS", "SIN")


def network_facts(network: trt.INetworkDefinition, module: Any) -> dict[str, list[str]]:
    """What is wrong with the types of a parsed network.

    Args:
        network: after parsing.
        module: ``tensorrt`` or ``tensorrt_rtx``.

    Returns:
        ``half_islands``: softmax, reductions, roots, rotary angles in half precision;
        ``bare_codes``: products of codes whose weight scale is not one number; ``softmax``: names
        of the attention's softmax layers.

    """
    half = module.DataType.HALF
    types = {getattr(module.LayerType, name): name for name in _names(module)}
    islands: list[str] = []
    softmax: list[str] = []
    scales: dict[str, int] = {}  # output of a DequantizeLinear -> number of scales
    products: list[tuple[str, list[str]]] = []
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        kind = types.get(layer.type)
        if kind is None:
            continue
        in_half = kind != "DEQUANTIZE" and layer.get_input(0).dtype == half
        if in_half and (kind in FLOAT_LAYERS or (kind == "UNARY" and _is_root(layer, module))):
            islands.append(layer.name)
        if kind == "SOFTMAX":
            softmax.append(layer.name)
        if kind == "DEQUANTIZE" and layer.get_input(0).dtype != getattr(
            module.DataType,
            "FP4",
            None,  # block scales are applied inside the product
        ):
            scales[layer.get_output(0).name] = _volume(layer.get_input(1).shape)
        if kind in LAYOUT and layer.get_input(0).name in scales:
            scales[layer.get_output(0).name] = scales[layer.get_input(0).name]
        if kind == "MATRIX_MULTIPLY":
            products.append((layer.name, [layer.get_input(i).name for i in range(2)]))
    bare = [
        name
        for name, inputs in products
        if all(value in scales for value in inputs) and any(scales[v] != 1 for v in inputs)
    ]
    return {"half_islands": islands, "bare_codes": bare, "softmax": softmax}


def _names(module: Any) -> list[str]:
    wanted = (*FLOAT_LAYERS, *LAYOUT, "UNARY", "DEQUANTIZE", "MATRIX_MULTIPLY")
    return [name for name in wanted if hasattr(module.LayerType, name)]


def _is_root(layer: Any, module: Any) -> bool:
    """Whether a unary layer is one of `FLOAT_UNARY`; some releases do not tell which it is."""
    layer.__class__ = module.IUnaryLayer
    return layer.op in {getattr(module.UnaryOperation, name) for name in FLOAT_UNARY}


def _volume(shape: Any) -> int:
    count = 1
    for size in tuple(shape):
        count *= size
    return count
