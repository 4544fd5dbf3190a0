"""Every kind of graph through NVIDIA's own parser and compiler, TensorRT for RTX, without a GPU.

What is asserted is read from the kernels of the compiled plan; nothing runs here.
"""

from __future__ import annotations

import importlib.util
import json
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from compiled import compiled, facts_of, softmaxes
from onnx import ModelProto
from test_graph_checks import half_norm, half_softmax, weight_scale_per_channel

from pi05_ros.backends.errors import BackendError
from pi05_ros.backends.export.export import export_stage
from pi05_ros.backends.quantization.made_up_ranges import made_up_ranges
from pi05_ros.backends.staged.shapes import StageShapes
from pi05_ros.backends.tensorrt.flavor import RTX, parse_targets, sm
from pi05_ros.model import Pi05, Pi05Config
from pi05_ros.model.config import GemmaConfig, VisionConfig

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="no wheel of TensorRT for RTX"
)
WORDS = {"Half", "Float", "Int32", "Int64", "FP8", "Int8", "Bool", "FP4", "UINT8", "FP4E2M1"}


def test_the_compiler_is_there_where_its_wheel_exists() -> None:
    """CI on x86_64 must not skip this file."""
    assert platform.machine() == "x86_64" or importlib.util.find_spec("tensorrt_rtx")
    assert RTX.require().startswith("1.")


@pytest.fixture(scope="session")
def graph_of(
    model: Pi05, shapes: StageShapes, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], Path]:
    """Exported stage of a preset; "fp16" is none."""
    kept: dict[tuple[str, str], Path] = {}

    def export(kind: str, stage: str) -> Path:
        if (kind, stage) not in kept:
            ranges = None if kind == "fp16" else made_up_ranges(model, kind)
            folder = tmp_path_factory.mktemp(kind)
            result = export_stage(model, stage, shapes, folder, calibration=ranges, steps=1)
            kept[kind, stage] = result.path
        return kept[kind, stage]

    return export


# Every kind of graph and every target once; a target does not change what a graph is made of.
BUILDS = [
    ("fp16", "vision", "sm86"),
    ("fp16", "prefill", "sm120"),
    ("fp16", "denoise_step", "sm89"),
    ("fp8", "prefill", "sm89"),
    ("fp8", "prefill", "sm120"),
    ("fp8", "denoise_step", "sm120"),
    ("fp8", "prefill_mlp_00", "sm121"),
    ("fp8", "full", "sm89"),
    ("fp8_attention", "prefill", "sm89"),
    ("fp8_attention", "prefill", "sm121"),
    ("fp8_tensor", "prefill", "sm89"),
    ("int8_smoothquant", "prefill", "sm86"),
    ("int8_smoothquant", "prefill", "sm120"),
    ("w8a16", "prefill", "sm86"),
    ("nvfp4", "prefill", "sm120"),
    ("w8a16", "prefill_mlp_00", "sm120"),
]


@pytest.mark.parametrize(("kind", "stage", "target"), BUILDS)
def test_compiles_to_the_kernels_it_must_have(
    kind: str,
    stage: str,
    target: str,
    graph_of: Callable[[str, str], Path],
    shapes: StageShapes,
) -> None:
    graph = graph_of(kind, stage)
    plan = compiled(graph, target)
    assert plan.messages == []
    facts = facts_of(plan, graph, "int8" if kind == "int8_smoothquant" else "fp8")
    assert facts.detailed
    assert facts.missing == []
    assert facts.half_islands == []
    assert facts.bare_codes == []
    assert facts.doubles == []
    assert facts.fused_attentions == facts.attentions == softmaxes(graph)
    layers = json.loads(plan.layers)["Layers"]
    sides = [t for layer in layers for side in ("Inputs", "Outputs") for t in layer.get(side, [])]
    assert {tensor["Datatype"] for tensor in sides} <= WORDS
    products = [layer for layer in layers if layer["LayerType"] in ("gemm", "runtime_fusion")]
    assert products
    if kind == "nvfp4":
        fp4 = [p for p in products if p["Inputs"][0]["Datatype"] == "FP4E2M1"]
        assert len(fp4) == 3 * (shapes.depth - 1)
    assert facts.copies <= len(layers) / 5


def test_prefill_of_real_width(tmp_path: Path) -> None:
    """Two layers of Gemma-2B's width: the products whose bare sums of codes would overflow."""
    config = Pi05Config(
        vision=VisionConfig(num_hidden_layers=1),
        vlm=GemmaConfig(width=2048, depth=2, mlp_dim=16384),
        expert=GemmaConfig(width=64, depth=2, mlp_dim=64),
        vocab=64,
    )
    model = Pi05.random_on_device(config, 3, torch.bfloat16, "cpu")
    sizes = StageShapes.of(config, 2, 200, 50)
    ranges = made_up_ranges(model, "fp8")
    graph = export_stage(model, "prefill", sizes, tmp_path, calibration=ranges).path
    plan = compiled(graph, "sm89")
    facts = facts_of(plan, graph)
    assert plan.messages == []
    assert (facts.quantized, facts.missing) == (9, [])
    assert (facts.half_islands, facts.bare_codes) == ([], [])
    assert facts.fused_attentions == facts.attentions == 1


PLANTED: list[tuple[Callable[[ModelProto], None], str]] = [
    (half_softmax, "half_islands"),
    (half_norm, "half_islands"),
    (weight_scale_per_channel, "bare_codes"),
]


@pytest.mark.parametrize(("mutate", "fault"), PLANTED, ids=[m.__name__ for m, _ in PLANTED])
def test_planted_fault_is_seen_in_the_compiled_engine(
    mutate: Callable[[ModelProto], None],
    fault: str,
    graph_of: Callable[[str, str], Path],
    tmp_path: Path,
) -> None:
    model = onnx.load(str(graph_of("fp8", "prefill")))
    mutate(model)
    path = tmp_path / "planted.onnx"
    onnx.save(model, str(path))
    facts = facts_of(compiled(path, "sm89"), path)
    assert len(getattr(facts, fault)) >= 1


def test_fp8_for_a_gpu_without_it_and_too_little_workspace(
    graph_of: Callable[[str, str], Path],
) -> None:
    graph = graph_of("fp8", "prefill_mlp_00")
    with pytest.raises(BackendError, match=r"could not build .*HW-specific datatypes: fp8"):
        compiled(graph, "sm86")
    from pi05_ros.backends.tensorrt.plan_compiler import BuildFlags, compile_plan

    flags = BuildFlags(workspace_mib=1, flavor=RTX, target=(8, 9))
    graph = graph_of("fp8", "prefill")
    with pytest.raises(BackendError, match="within workspace limit"):
        compile_plan(graph, flags)
    assert compile_plan(graph, replace(flags, workspace_mib=64)).data.nbytes > 0


def test_builds_are_reproducible_and_targets_differ(
    graph_of: Callable[[str, str], Path],
) -> None:
    graph = graph_of("fp8", "prefill_mlp_00")
    first, again, other = (bytes(compiled(graph, t).data) for t in ("sm89", "sm89", "sm120"))
    assert first == again
    assert first != other


def test_files_that_are_no_graphs(tmp_path: Path, graph_of: Callable[[str, str], Path]) -> None:
    with pytest.raises(BackendError, match=r"cannot parse nothing\.onnx"):
        compiled(tmp_path / "nothing.onnx", "sm89")
    garbage = tmp_path / "garbage.onnx"
    garbage.write_bytes(b"no graph")
    with pytest.raises(BackendError, match=r"cannot parse garbage\.onnx"):
        compiled(garbage, "sm89")
    model = onnx.load(str(graph_of("fp8", "prefill_mlp_00")))
    next(node for node in model.graph.node if node.op_type == "Gelu").op_type = "NoSuchOperator"
    unknown = tmp_path / "unknown.onnx"
    onnx.save(model, str(unknown))
    with pytest.raises(BackendError, match=r"/Gelu \(NoSuchOperator\): .*Plugin not found"):
        compiled(unknown, "sm89")


# Objects must be destroyed in the order that TensorRT survives, on every way out: a wrong one is
# a segmentation fault, so it has a process of its own.
LIFETIMES = """
import gc, sys
from pathlib import Path
from pi05_ros.backends.errors import BackendError
from pi05_ros.backends.tensorrt.plan_compiler import BuildFlags, compile_plan
from pi05_ros.backends.tensorrt.flavor import RTX

good, bad = Path(sys.argv[1]), Path(sys.argv[2])
flags = BuildFlags(flavor=RTX, target=(8, 9))

def stop(*words):
    raise KeyboardInterrupt

for _ in range(2):
    plan = compile_plan(good, flags, progress=lambda *words: None)
    gc.collect()
    assert plan.data.nbytes
    del plan
    gc.collect()
kept = []
for path, wrong in ((bad, flags), (good, BuildFlags(flavor=RTX, target=(8, 6)))):
    try:
        compile_plan(path, wrong)
    except BackendError as error:
        kept.append(error)  # with its traceback and so the frames
try:
    compile_plan(good, flags, progress=stop)
except BaseException as error:
    kept.append(error)
assert len(kept) >= 2, kept
kept.clear()
gc.collect()

from pi05_ros.backends.tensorrt.runtime import PlanFile
if len(sys.argv) > 3:
    plan = compile_plan(good, flags)
    Path(sys.argv[3]).write_bytes(plan.data)
    try:
        PlanFile(Path(sys.argv[3]), RTX)
    except BackendError as error:
        print(str(error)[:200])
print("fine")
"""


def test_lifetimes_in_every_order(graph_of: Callable[[str, str], Path], tmp_path: Path) -> None:
    garbage = tmp_path / "garbage.onnx"
    garbage.write_bytes(b"no graph")
    good = str(graph_of("fp8", "prefill_mlp_00"))
    words = [sys.executable, "-c", LIFETIMES, good, str(garbage), str(tmp_path / "x.plan")]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=root)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "fine"
    if not torch.cuda.is_available():
        assert "cannot load" in done.stdout


def test_targets_in_words() -> None:
    assert parse_targets("SM120, sm89,sm89") == ((8, 9), (12, 0))
    assert sm((12, 1)) == "sm121"
    with pytest.raises(BackendError, match="'sm90' is unknown; TensorRT for RTX compiles for"):
        parse_targets("sm89,sm90")
