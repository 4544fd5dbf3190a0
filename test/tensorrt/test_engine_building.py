"""Building engines on the fake TensorRT: every failure says what to do."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from engine_sets import CPU, Install, build

from pi05_ros.backends import files
from pi05_ros.backends.errors import BackendError
from pi05_ros.backends.export.export_document import read_export
from pi05_ros.backends.tensorrt import preflight
from pi05_ros.backends.tensorrt.engine_store import build_engines


def test_timing_cache_is_reused_and_stale_ones_are_replaced(
    install: Install, graphs_fp16: Path, tmp_path: Path
) -> None:
    faults = install()
    found = build(graphs_fp16, tmp_path)
    cache = found.folder.parent.parent / "timing.cache"
    assert cache.read_bytes() == b"measured"
    faults.stale_timing_cache = True
    build(graphs_fp16, tmp_path, level=2)
    faults.stale_timing_cache, faults.damaged_timing_cache = False, True
    cache.write_bytes(b"half of it")
    build(graphs_fp16, tmp_path, level=1)
    assert cache.read_bytes() == b"measured"


def test_builder_failures_name_their_reasons(
    install: Install, graphs_fp16: Path, tmp_path: Path
) -> None:
    faults = install()
    faults.builder_is_null = True
    with pytest.raises(BackendError, match=r"cannot create a builder.*error: 35"):
        build(graphs_fp16, tmp_path)
    faults.builder_is_null = False
    faults.parser_errors = [("/layers/0/x", "unsupported"), ("", "bad shape")]
    with pytest.raises(BackendError, match=r"/layers/0/x \(MatMul\): unsupported\n  bad shape"):
        build(graphs_fp16, tmp_path)
    faults.parser_errors = []
    faults.build_returns_none = True
    with pytest.raises(
        BackendError, match=r"could not build.*UNSPECIFIED_ERROR: .*no implementation"
    ):
        build(graphs_fp16, tmp_path)
    folder = next(tmp_path.rglob("engines")).iterdir()
    assert not any((path / "key.json").exists() for path in folder)


def test_flags_are_checked(install: Install) -> None:
    install()
    from pi05_ros.backends.tensorrt.plan_compiler import BuildFlags

    with pytest.raises(BackendError, match="accepted are 0 to 5"):
        BuildFlags(optimization_level=6)
    with pytest.raises(BackendError, match="0 and more"):
        BuildFlags(workspace_mib=-1)


def test_progress_reaches_the_caller(install: Install, graphs_fp16: Path, tmp_path: Path) -> None:
    install()
    from pi05_ros.backends.tensorrt.plan_compiler import BuildFlags

    seen: list[tuple[str, str, int, int]] = []
    build_engines(
        graphs_fp16,
        BuildFlags(workspace_mib=64),
        CPU,
        root=tmp_path,
        progress=lambda *words: seen.append(words),
    )
    assert ("vision", "Building engine", 2, 2) in seen


def test_altered_graphs_are_not_built(install: Install, graphs_fp16: Path, tmp_path: Path) -> None:
    install()
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in graphs_fp16.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    data = copy / "prefill.onnx.data"
    data.write_bytes(data.read_bytes()[:-1] + b"\x01")
    with pytest.raises(BackendError, match="is not what was exported"):
        build(copy, tmp_path)


def test_full_disk(
    install: Install, graphs_fp16: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install()

    class Usage:
        free = 1000

    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda path: Usage)
    with pytest.raises(BackendError, match="MiB free, the plans need"):
        build(graphs_fp16, tmp_path)
    monkeypatch.undo()
    target = tmp_path / "x.plan"

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(BackendError, match="No space left on device"):
        files.write_atomically(target, b"plan")
    assert list(tmp_path.glob("*.plan")) == list(tmp_path.glob(".x.plan*")) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("MemTotal: 8 kB\nMemAvailable:  102400 kB\n", r"^100 MiB of host memory are available"),
        ("MemAvailable: 99999999999 kB\n", ""),
        ("MemFree: 1 kB\nMemAvailable:\n", ""),  # nobody says: go on
    ],
)
def test_too_little_host_memory(
    text: str,
    message: str,
    install: Install,
    graphs_fp16: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install()
    information = tmp_path / "meminfo"
    information.write_text(text)
    monkeypatch.setattr(preflight, "MEMORY_INFO", information)
    if message:
        with pytest.raises(BackendError, match=message) as caught:
            build(graphs_fp16, tmp_path)
        assert re.search(r"building \w+ needs about 5\d\d MiB", str(caught.value))
        assert not list(tmp_path.rglob("*.plan"))
    else:
        preflight.require_room(graphs_fp16, read_export(graphs_fp16), tmp_path, CPU)
    monkeypatch.setattr(preflight, "MEMORY_INFO", tmp_path / "missing")
    assert preflight.available_memory() is None


def test_too_little_gpu_memory(
    graphs_fp16: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 2000))
    with pytest.raises(BackendError, match="0 MiB of GPU memory are free, building"):
        preflight.require_room(
            graphs_fp16, read_export(graphs_fp16), tmp_path, torch.device("cuda", 0)
        )


def test_swapped_graphs_are_not_built(
    install: Install, graphs_mlp_only: Path, tmp_path: Path
) -> None:
    install()
    graphs = tmp_path / "graphs"
    graphs.mkdir()
    for path in graphs_mlp_only.iterdir():
        (graphs / path.name).write_bytes(path.read_bytes())
    for suffix in ("", ".data"):
        source = graphs / f"prefill_mlp_00.onnx{suffix}"
        (graphs / f"prefill_mlp_01.onnx{suffix}").write_bytes(source.read_bytes())
    with pytest.raises(BackendError, match=r"prefill_mlp_01\.onnx\S* is not what was exported"):
        build(graphs, tmp_path)
