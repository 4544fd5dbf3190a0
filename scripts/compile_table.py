#!/usr/bin/env python3
"""Compile graphs with TensorRT for RTX, without a GPU, and print what came out as a table.

usage: scripts/compile_table.py LAYERS FOLDER [--kinds fp16,fp8] [--stages vision,prefill]
                                [--targets sm89,sm120]
       scripts/compile_table.py --graphs FOLDER [--targets sm89,sm120]

The first form exports Gemma-2B, Gemma-300M and SigLIP widths with LAYERS layers (18: full size,
with 27 in the vision tower) into FOLDER/KIND; the second compiles the graphs in FOLDER/KIND.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path

import torch

from pi05_ros.backends.errors import BackendError
from pi05_ros.backends.export.export import export_stage
from pi05_ros.backends.quantization.made_up_ranges import made_up_ranges
from pi05_ros.backends.staged.shapes import STAGES, StageShapes
from pi05_ros.backends.tensorrt.flavor import RTX, Capability, parse_targets, sm
from pi05_ros.backends.tensorrt.plan_compiler import BuildFlags, compile_plan
from pi05_ros.backends.verification.inspector import quantized_products, read_layers
from pi05_ros.model import Pi05, Pi05Config
from pi05_ros.model.config import GemmaConfig, VisionConfig

FULL_VISION = 27
KINDS = "fp16,fp8,fp8_attention,fp8_tensor,int8_smoothquant,w8a16,nvfp4"
COLUMNS = (
    "graph", "target", "build s", "plan MiB", "kernels", "quantized", "attentions fused",
    "copies", "half", "sums of codes",
)  # fmt: skip


def export(layers: int, folder: Path, kinds: list[str], stages: list[str]) -> None:
    """Write the stages of every kind; stages that are equal in several kinds once."""
    vision = FULL_VISION if layers == 18 else layers
    config = Pi05Config(
        vision=VisionConfig(num_hidden_layers=vision),
        vlm=GemmaConfig(width=2048, depth=layers, mlp_dim=16384),
        expert=GemmaConfig(width=1024, depth=layers, mlp_dim=4096),
        vocab=512,
    )
    dtype = torch.float32 if layers < 4 else torch.bfloat16
    model = Pi05.random_on_device(config, 3, dtype, "cpu")
    shapes = StageShapes.of(config, 2, 200, 50)
    for kind in kinds:
        ranges = None if kind == "fp16" else made_up_ranges(model, kind)
        for stage in STAGES:
            if stage not in stages or (stage == "vision" and kind != "fp16"):
                continue
            if stage == "denoise_step" and kind in ("fp8_attention", "nvfp4"):
                continue  # equal to that of fp8
            started = time.perf_counter()
            export_stage(model, stage, shapes, folder / kind, calibration=ranges)
            seconds = time.perf_counter() - started
            print(f"exported {kind}/{stage} in {seconds:.1f} s", flush=True)


def row(graph: Path, target: Capability) -> list[str]:
    """One build."""
    kind = graph.parent.name
    expected = quantized_products(str(graph))
    name = f"{kind}/{graph.stem}"
    try:
        plan = compile_plan(graph, BuildFlags(flavor=RTX, target=target))
    except BackendError as error:
        return [name, sm(target), str(error).splitlines()[0][:60], *[""] * (len(COLUMNS) - 3)]
    facts = read_layers(plan.layers, expected, "int8" if "int8" in kind else "fp8")
    words = [f"{plan.seconds:.1f}", f"{plan.data.nbytes / 2**20:.1f}"]
    layers = json.loads(plan.layers)["Layers"]
    kernels = sum(layer.get("LayerType") not in ("signal", "wait") for layer in layers)
    words += [str(kernels), f"{facts.quantized} of {len(expected)}"]
    words += [f"{facts.fused_attentions} of {facts.attentions}", str(facts.copies)]
    return [name, sm(target), *words, str(len(facts.half_islands)), str(len(facts.bare_codes))]


def main() -> None:
    """Export where asked to, compile, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("layers", type=int, nargs="?")
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--graphs", type=Path)
    parser.add_argument("--kinds", default=KINDS)
    parser.add_argument("--stages", default=",".join(STAGES))
    parser.add_argument("--targets", default="sm89,sm120")
    args = parser.parse_args()
    if args.graphs is None:
        if args.layers is None or args.folder is None:
            parser.error("LAYERS and FOLDER, or --graphs FOLDER")
        export(args.layers, args.folder, args.kinds.split(","), args.stages.split(","))
    folder = args.graphs or args.folder
    print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|")
    for graph in sorted(folder.glob("*/*.onnx")):
        for target in parse_targets(args.targets):
            print("| " + " | ".join(row(graph, target)) + " |", flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"\n{RTX.title} {RTX.require()}, peak host memory {peak:.1f} GiB")


if __name__ == "__main__":
    main()
