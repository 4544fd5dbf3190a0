"""Which engines are used: exact key, whole files, a passing report; what happens without."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_sets import CPU, SIZES, Install, build, check, keep

from pi05_ros.backends import create_engine, identity
from pi05_ros.backends import tensorrt as backend
from pi05_ros.backends.engine import Precision
from pi05_ros.backends.errors import BackendError
from pi05_ros.backends.identity import engine_key, weights_id
from pi05_ros.backends.quantization.samples import Sample
from pi05_ros.backends.staged.engine import StagedEngine
from pi05_ros.backends.tensorrt import binding, engine_set, engine_store
from pi05_ros.backends.tensorrt.engine_report import require_verified
from pi05_ros.backends.tensorrt.engine_set import UnverifiedEngineError, open_set, require_match
from pi05_ros.backends.tensorrt.engine_store import find_verified
from pi05_ros.backends.tensorrt.flavor import TENSORRT
from pi05_ros.model import Pi05


def test_only_the_exact_key_is_loaded(
    install: Install,
    graphs_fp16: Path,
    tmp_path: Path,
    reference: StagedEngine,
    fake_quant: StagedEngine,
    samples: list[Sample],
    model: Pi05,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install()
    found = build(graphs_fp16, tmp_path)
    keep(found, check(found, graphs_fp16, reference, fake_quant, samples))
    weights = weights_id(model)
    require_verified(found, CPU)
    require_match(open_set(found.folder), weights, CPU)
    with pytest.raises(UnverifiedEngineError, match="are of weights"):
        require_match(found, "sha256:other", CPU)
    facts = engine_set.machine_facts(CPU)
    monkeypatch.setattr(engine_set, "machine_facts", lambda d: {**facts, "gpu": "another"})
    with pytest.raises(UnverifiedEngineError, match="with gpu 'cpu', here it is 'another'"):
        find_verified(weights, found.shapes, Precision(), CPU, tmp_path)
    monkeypatch.setattr(engine_set, "machine_facts", lambda d: facts)
    install("11.4.0.106")
    with pytest.raises(
        UnverifiedEngineError, match=r"built by TensorRT 10\.13\.3\.9, this is 11\.4"
    ):
        find_verified(weights, found.shapes, Precision(), CPU, tmp_path)
    install()
    with pytest.raises(UnverifiedEngineError, match="run prefill in fp8, asked for is fp16"):
        find_verified(weights, found.shapes, Precision(prefill="fp16"), CPU, tmp_path)
    with pytest.raises(BackendError, match="are for horizon 10, the policy needs 9"):
        backend.create(model, Precision(), cache=tmp_path, **{**SIZES, "horizon": 9})
    assert find_verified(weights, found.shapes, Precision(), CPU, tmp_path).folder == found.folder


def test_altered_files_are_refused(
    install: Install, graphs_fp16: Path, tmp_path: Path, model: Pi05
) -> None:
    install()
    found = build(graphs_fp16, tmp_path)
    plan = found.folder / "prefill.plan"
    whole = plan.read_bytes()
    plan.write_bytes(whole[:-3])
    with pytest.raises(UnverifiedEngineError, match="missing, cut short or altered"):
        open_set(found.folder)
    plan.write_bytes(whole)
    key = found.folder / "key.json"
    content = json.loads(key.read_text())
    content["document"]["flags"]["tf32"] = True
    key.write_text(json.dumps(content))
    with pytest.raises(UnverifiedEngineError, match="does not match its content"):
        open_set(found.folder)
    key.write_text("[]")
    with pytest.raises(UnverifiedEngineError, match="not a mapping"):
        open_set(found.folder)
    key.write_bytes(b"\xff")
    with pytest.raises(UnverifiedEngineError, match="not text in UTF-8"):
        open_set(found.folder)
    key.unlink()
    with pytest.raises(UnverifiedEngineError, match="no finished build"):
        open_set(found.folder)
    with pytest.raises(UnverifiedEngineError, match="no engines of this checkpoint"):
        find_verified("sha256:none", found.shapes, Precision(), CPU, tmp_path)


@pytest.mark.parametrize("name", ["key.json", "vision.plan", "denoise_step.plan"])
@pytest.mark.parametrize("bits", [0o666, 0o620, 0o602])
def test_files_that_others_may_write_are_refused(
    install: Install, graphs_fp16: Path, tmp_path: Path, name: str, bits: int
) -> None:
    install()
    found = build(graphs_fp16, tmp_path)
    open_set(found.folder)
    (found.folder / name).chmod(bits)
    with pytest.raises(UnverifiedEngineError, match=rf"others may write into .*{name}"):
        open_set(found.folder)


def _without(*names: str) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        inner = document
        for name in names[:-1]:
            inner = inner[name]
        del inner[names[-1]]

    return change


def _other(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda document: document.__setitem__(name, value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_other("schema", 0), "from another version of this package"),
        (_without("flags", "layout"), "damaged .KeyError"),
        (_without("shapes", "depth"), "damaged .TypeError"),
        (_other("machine", []), "damaged .TypeError: machine is"),
        (_other("weights", 3), "damaged .TypeError: weights is"),
    ],
)
def test_keys_that_cannot_be_read_hide_no_good_engines(
    change: Callable[[dict[str, Any]], None],
    message: str,
    install: Install,
    graphs_fp16: Path,
    tmp_path: Path,
    model: Pi05,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another version's folder, say: named, and passed over in the search."""
    install()
    good = build(graphs_fp16, tmp_path)
    monkeypatch.setattr(engine_store, "require_verified", lambda found, device: {})
    content = json.loads((good.folder / "key.json").read_text())
    change(content["document"])
    content["key"] = engine_key(content["document"])
    bad = good.folder.with_name(content["key"])
    shutil.copytree(good.folder, bad)
    (bad / "key.json").write_text(json.dumps(content))
    with pytest.raises(UnverifiedEngineError, match=message):
        open_set(bad)
    found = find_verified(weights_id(model), good.shapes, Precision(), CPU, tmp_path)
    assert found.folder == good.folder


def test_a_refusing_report_that_is_damaged_still_refuses(
    install: Install, graphs_fp16: Path, tmp_path: Path
) -> None:
    install()
    found = build(graphs_fp16, tmp_path)
    content = {
        "schema": 1,
        "key": found.folder.name,
        "plans": json.loads((found.folder / "key.json").read_text())["plans"],
    }
    for findings in (None, 3, [3], [{"ok": False}]):
        (found.folder / "check.json").write_text(json.dumps({**content, "findings": findings}))
        with pytest.raises(UnverifiedEngineError, match="failed their check"):
            require_verified(found, CPU)


def test_reports_of_other_plans_or_refusals_do_not_count(
    install: Install,
    graphs_fp16: Path,
    tmp_path: Path,
    reference: StagedEngine,
    fake_quant: StagedEngine,
    samples: list[Sample],
) -> None:
    faults = install()
    found = build(graphs_fp16, tmp_path)
    report = check(found, graphs_fp16, reference, fake_quant, samples)
    path = keep(found, report)
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "plans": {}}))
    with pytest.raises(UnverifiedEngineError, match="not about these plans"):
        require_verified(found, CPU)
    faults.perturb = 0.3
    bad = check(found, graphs_fp16, reference, fake_quant, samples)
    assert not bad.ok
    keep(found, bad)
    with pytest.raises(
        UnverifiedEngineError, match=r"failed their check .*--optimization-level 2"
    ):
        require_verified(found, CPU)


def test_folder_of_others_is_refused(install: Install, graphs_fp16: Path, tmp_path: Path) -> None:
    install()
    found = build(graphs_fp16, tmp_path)
    os.chmod(found.folder, 0o777)
    with pytest.raises(BackendError, match="others may write"):
        open_set(found.folder)


def test_fallback_only_when_allowed_and_visible(
    install: Install, tmp_path: Path, model: Pi05, caplog: pytest.LogCaptureFixture
) -> None:
    install()
    with pytest.raises(UnverifiedEngineError, match="run: pi05 build"):
        backend.create(model, Precision(), cache=tmp_path, **SIZES)
    with caplog.at_level(logging.ERROR):
        engine = create_engine(model, "tensorrt", cache=tmp_path, allow_fallback=True, **SIZES)
    assert engine.backend == "eager"
    assert engine.reason.startswith("fallback from tensorrt: no engines of this checkpoint")
    assert "backend tensorrt cannot be used, eager is" in caplog.text
    assert create_engine(model, "auto", **SIZES).backend == "eager"


def test_absent_old_and_new_tensorrt(
    install: Install, monkeypatch: pytest.MonkeyPatch, model: Pi05
) -> None:
    assert not binding.usable()[0]
    with pytest.raises(BackendError, match="not installed: pip install tensorrt"):
        TENSORRT.require()
    for version in ("10.12.0.36", "12.0.0.1", "8.6.1"):
        install(version)
        with pytest.raises(BackendError, match=r"needed are 10\.13 up to 11\.x"):
            TENSORRT.require()
    with pytest.raises(BackendError, match="cannot read"):
        identity.parse_version("unknown")
    works, why = backend.verified(model, Precision(), 2, 10, 12)
    assert not works
    assert "not supported" in why or "no CUDA device" in why


@pytest.mark.parametrize("error", [OSError("libnvinfer.so.10"), RuntimeError("no driver"), None])
def test_a_tensorrt_that_does_not_load_is_not_taken(
    error: Exception | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: Pi05
) -> None:
    package = tmp_path / "tensorrt"
    package.mkdir()
    if error is not None:  # else a folder of that name, which Python takes for a package
        name = type(error).__name__
        (package / "__init__.py").write_text(f"raise {name}({str(error)!r})")
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(BackendError, match="is there but does not load") as caught:
        TENSORRT.require()
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    assert error is None or str(error) in str(caught.value)
    assert not backend.verified(model, Precision(), 2, 10, 12)[0]


def test_gpu_without_fp8_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BackendError, match="no CUDA device"):
        binding.require_gpu(fp8=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 7))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Orin")
    with pytest.raises(BackendError, match=r"Orin \(compute capability 8.7\) has no FP8"):
        binding.require_gpu(fp8=True)
    assert binding.require_gpu(fp8=False) == torch.device("cuda", 0)
    second = torch.device("cuda", 1)
    assert binding.require_gpu(fp8=False, near=second) == second
    assert binding.require_gpu(fp8=False, near=CPU) == torch.device("cuda", 0)
