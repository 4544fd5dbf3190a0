"""Compiles graphs with the real TensorRT for RTX, which needs no GPU, and reads what came out."""

from __future__ import annotations

from pathlib import Path

import onnx
import torch

from pi05_ros.backends.quantization.calibration import Calibration
from pi05_ros.backends.quantization.presets import expected_quantizers, preset
from pi05_ros.backends.tensorrt.flavor import RTX, parse_targets
from pi05_ros.backends.tensorrt.plan_compiler import BuildFlags, Plan, compile_plan
from pi05_ros.backends.verification.inspector import EngineFacts, quantized_products, read_layers
from pi05_ros.model import Pi05


def compiled(graph: Path, target: str) -> Plan:
    return compile_plan(graph, BuildFlags(flavor=RTX, target=parse_targets(target)[0]))


def facts_of(plan: Plan, graph: Path, kind: str = "fp8") -> EngineFacts:
    return read_layers(plan.layers, quantized_products(str(graph)), kind)


def softmaxes(graph: Path) -> int:
    nodes = onnx.load(str(graph), load_external_data=False).graph.node
    return sum(node.op_type == "Softmax" for node in nodes)


@torch.no_grad()
def made_up_ranges(model: Pi05, name: str) -> Calibration:
    """True ranges of the weights, invented ones of activations: a compiler sees types alone."""
    choice = preset(name)
    amax: dict[str, torch.Tensor] = {}
    smooth: dict[str, torch.Tensor] = {}
    for quantizer in expected_quantizers(
        choice, model.config.vlm.depth, stages=("prefill", "denoise_step")
    ):
        if not quantizer.endswith("weight_quantizer"):
            amax[quantizer] = torch.tensor(1.0 if ".av.a_" in quantizer else 12.0)
            continue
        words = quantizer.split(".")
        layer = (model.vlm if words[0] == "prefill" else model.expert).layers[int(words[2])]
        owner = layer.mlp if "mlp" in words else layer.self_attn
        weight = getattr(owner, words[-2]).weight.detach().float()
        whole = not choice.per_channel or choice.is_fp4(words[0], words[-2])
        amax[quantizer] = weight.abs().max() if whole else weight.abs().amax(dim=1)
        if choice.algorithm == "smoothquant":
            factor = torch.full((weight.shape[1],), 0.9)
            smooth[quantizer.removesuffix(".weight_quantizer")] = factor
    return Calibration(name, amax, smooth, {})
