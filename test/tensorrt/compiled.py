"""Compiles graphs with the real TensorRT for RTX, which needs no GPU, and reads what came out."""

from __future__ import annotations

from pathlib import Path

import onnx

from pi05_ros.backends.tensorrt.flavor import RTX, parse_targets
from pi05_ros.backends.tensorrt.plan_compiler import BuildFlags, Plan, compile_plan
from pi05_ros.backends.verification.inspector import EngineFacts, quantized_products, read_layers


def compiled(graph: Path, target: str) -> Plan:
    return compile_plan(graph, BuildFlags(flavor=RTX, target=parse_targets(target)[0]))


def facts_of(plan: Plan, graph: Path, kind: str = "fp8") -> EngineFacts:
    return read_layers(plan.layers, quantized_products(str(graph)), kind)


def softmaxes(graph: Path) -> int:
    nodes = onnx.load(str(graph), load_external_data=False).graph.node
    return sum(node.op_type == "Softmax" for node in nodes)
