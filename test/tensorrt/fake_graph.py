"""An engine of the fake TensorRT: a graph run by ONNX Runtime at the addresses it was given."""

from __future__ import annotations

import ctypes
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

_TYPES = {1: "FLOAT", 10: "HALF", 6: "INT32"}
_NUMPY = {"FLOAT": np.float32, "HALF": np.float16, "INT32": np.int32}


@dataclass
class Faults:
    """What the fake TensorRT does wrong; all off at first."""

    builder_is_null: bool = False
    runtime_is_null: bool = False
    build_returns_none: bool = False
    deserialize_returns_none: bool = False
    context_is_none: bool = False
    execute_returns_false: bool = False
    execute_fails_from_level: int = 9  # kernels that break at some optimization level
    refuse_address_of: str = ""
    missing_shapes: list[str] = field(default_factory=list)
    parser_errors: list[tuple[str, str]] = field(default_factory=list)
    wrong_dtype_of: str = ""
    wrong_shape_of: str = ""
    extra_tensor: str = ""
    drop_fp8: bool = False
    half_softmax: bool = False
    no_layer_details: bool = False
    perturb: float = 0.0  # of all outputs from optimization level 3 on
    perturb_fp8_prefill: float = 0.0
    stale_timing_cache: bool = False
    damaged_timing_cache: bool = False
    calls: list[str] = field(default_factory=list)
    live_contexts: int = 0


class Graph:
    """One stage: run, and its layer report; ``tensors``: name -> (type, shape, mode)."""

    def __init__(self, path: str, level: int, faults: Faults, version: str) -> None:
        self.path, self.level, self.faults, self.version = path, level, faults, version
        self.stage = Path(path).stem
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(path, options)
        graph = onnx.load(path, load_external_data=False).graph
        self.fp8 = any(node.op_type == "DequantizeLinear" for node in graph.node)
        self.tensors: dict[str, tuple[str, tuple[int, ...], Any]] = {}
        for values, mode in (
            (graph.input, "INPUT"),
            (graph.output, "OUTPUT"),
        ):
            for value in values:
                kind = value.type.tensor_type
                shape = tuple(d.dim_value for d in kind.shape.dim)
                if value.name == faults.wrong_shape_of:
                    shape = (*shape[:-1], shape[-1] + 1)
                name = _TYPES[kind.elem_type]
                if value.name == faults.wrong_dtype_of:
                    name = "INT32" if name != "INT32" else "FLOAT"
                self.tensors[value.name] = (name, shape, mode)
        if faults.extra_tensor:
            self.tensors[faults.extra_tensor] = ("FLOAT", (1,), "INPUT")

    def _view(self, name: str, address: int) -> np.ndarray:
        kind, shape, _ = self.tensors[name]
        dtype = np.dtype(_NUMPY[kind])
        size = int(np.prod(shape)) * dtype.itemsize
        raw = (ctypes.c_uint8 * size).from_address(address)
        return np.frombuffer(raw, dtype=dtype).reshape(shape)

    def execute(self, addresses: dict[str, int]) -> None:
        names = [n for n, t in self.tensors.items() if t[2] == "OUTPUT"]
        feeds = {
            name: self._view(name, addresses[name])
            for name, tensor in self.tensors.items()
            if tensor[2] == "INPUT"
        }
        for name, value in zip(names, self.session.run(names, feeds), strict=True):
            noise = self.faults.perturb if self.level >= 3 else 0.0
            if self.fp8 and self.stage == "prefill":
                noise += self.faults.perturb_fp8_prefill
            value = value + np.asarray(
                noise * np.sin(np.arange(value.size)).reshape(value.shape) * np.abs(value).max(),
                dtype=value.dtype,
            )
            np.copyto(self._view(name, addresses[name]), value)

    def layers(self) -> str:
        if self.faults.no_layer_details:
            return json.dumps({"Layers": ["a kernel", "another"]})
        graph = onnx.load(self.path, load_external_data=False).graph
        quantized = {
            value
            for node in graph.node
            if node.op_type == "DequantizeLinear"
            for value in node.output
        }
        layers = []
        for node in graph.node:
            if node.op_type == "MatMul":
                fp8 = bool(quantized & set(node.input)) and not self.faults.drop_fp8
                word = "Row major linear FP8 format" if fp8 else "Row major linear FP16 format"
                layers.append(_layer(node.name, "gemm", word, self.version))
            if node.op_type == "Softmax":  # named after the operations that are fused into it
                half = (
                    "MaxrSubExpSumDiv" if self.faults.half_softmax else "CastMaxrSubExpSumDivCast"
                )
                layer = _layer(node.name, "kgen", "Row major linear FP16 format", self.version)
                layers.append({**layer, "Name": f"__myl_{half}_myl0_{len(layers)}"})
        return json.dumps({"Layers": layers, "Bindings": list(self.tensors)})


def _layer(name: str, kind: str, word: str, version: str) -> dict[str, Any]:
    """One inspector entry in the form of 10.x or of 11.x."""
    if version.startswith("10."):
        tensor: dict[str, Any] = {"Name": "t", "Format/Datatype": word}
    else:
        kind = {"FP16": "Half", "FP32": "Float"}.get(word.split()[3], word.split()[3])
        tensor = {"Name": "t", "Format": "(Linear) Row major linear format", "Datatype": kind}
    return {
        "Name": f"kernel_{name}",
        "LayerType": kind,
        "Inputs": [tensor],
        "Outputs": [tensor],
        "Metadata": f"[ONNX Layer: {name}]\x1e[ONNX Layer: {name}_dq]",
    }
