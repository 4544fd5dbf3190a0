"""Engines of TensorRT for RTX on the machine they are for, on a stand-in of its runtime."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from engine_sets import CPU, check, keep
from fake_graph import Faults
from fake_rtx import RTX_NAMES, IRuntimeCache, make_fake_rtx

from pi05_ros.backends.engine import Precision
from pi05_ros.backends.identity import weights_id
from pi05_ros.backends.quantization.samples import Sample
from pi05_ros.backends.staged.engine import StagedEngine
from pi05_ros.backends.tensorrt import engine_set
from pi05_ros.backends.tensorrt.engine import TensorrtEngine
from pi05_ros.backends.tensorrt.engine_report import require_verified
from pi05_ros.backends.tensorrt.engine_set import EngineSet, UnverifiedEngineError, require_match
from pi05_ros.backends.tensorrt.engine_store import build_engines, find_verified
from pi05_ros.backends.tensorrt.flavor import RTX
from pi05_ros.backends.tensorrt.kernel_cache import KERNELS
from pi05_ros.backends.tensorrt.plan_compiler import BuildFlags
from pi05_ros.model import Pi05


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The stand-in in place of the module; stages whose kernels were compiled just in time."""
    found: list[str] = []
    module = make_fake_rtx(Faults(), found)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", module)
    monkeypatch.setattr(engine_set, "capability_of", lambda device: (8, 9))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a fake RTX 4090")
    return found


@pytest.fixture
def engines(compiled: list[str], graphs_fp16: Path, tmp_path: Path) -> EngineSet:
    flags = BuildFlags(flavor=RTX, target=(8, 9))
    return build_engines(graphs_fp16, flags, CPU, root=tmp_path)


def run(model: Pi05, engines: EngineSet, sample: Sample) -> torch.Tensor:
    engine = TensorrtEngine(model, engines, CPU)
    actions = engine.sample(sample.images, sample.tokens, sample.noise, 2)
    engine.close()
    return actions


def test_kernels_are_compiled_once_and_kept(
    engines: EngineSet,
    compiled: list[str],
    model: Pi05,
    samples: list[Sample],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = run(model, engines, samples[0])
    assert compiled == ["vision", "prefill", "denoise_step"]
    assert (engines.folder / KERNELS).read_bytes().startswith(b"KERNELS")
    assert torch.equal(run(model, engines, samples[0]), first)
    assert len(compiled) == 3
    monkeypatch.setattr(IRuntimeCache, "accepts", False)  # another driver
    run(model, engines, samples[0])
    assert len(compiled) == 6
    (engines.folder / KERNELS).unlink()
    (engines.folder / KERNELS).mkdir()  # not a file: compiled anew, and not kept
    monkeypatch.setattr(IRuntimeCache, "accepts", True)
    run(model, engines, samples[0])
    assert len(compiled) == 9


def test_a_report_is_of_one_machine(
    engines: EngineSet,
    model: Pi05,
    graphs_fp16: Path,
    reference: StagedEngine,
    fake_quant: StagedEngine,
    samples: list[Sample],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weights = weights_id(model)
    require_match(engines, weights, CPU)
    with pytest.raises(UnverifiedEngineError, match="never checked here"):
        require_verified(engines, CPU)
    # The builder of the stand-in prints no kernels: those of its inspector are taken.
    monkeypatch.setattr("engine_sets.inspect", lambda found, graphs: {})
    report = check(engines, graphs_fp16, reference, fake_quant, samples)
    assert report.ok, report.failures
    keep(engines, report)
    found = find_verified(weights, engines.shapes, Precision(), CPU, tmp_path)
    assert found.folder == engines.folder
    facts = engine_set.machine_facts(CPU)
    monkeypatch.setattr(engine_set, "machine_facts", lambda device: {**facts, "driver": "other"})
    with pytest.raises(UnverifiedEngineError, match="were checked on a machine with driver"):
        require_verified(engines, CPU)
    monkeypatch.setattr(engine_set, "capability_of", lambda device: (12, 0))
    with pytest.raises(
        UnverifiedEngineError, match=r"for sm89, this GPU is sm120.*--target sm120"
    ):
        require_match(engines, weights, CPU)


@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="no wheel of TensorRT for RTX"
)
def test_the_stand_in_has_names_of_the_real_module() -> None:
    import tensorrt_rtx

    for owner, names in RTX_NAMES.items():
        for name in names:
            assert hasattr(getattr(tensorrt_rtx, owner), name), (owner, name)
    caches = str(tensorrt_rtx.IRuntimeConfig.set_runtime_cache.__doc__)
    assert "IRuntimeCache" in caches
    assert "runtime_config: " in str(tensorrt_rtx.ICudaEngine.create_execution_context.__doc__)
