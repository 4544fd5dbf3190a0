"""Files of the TensorRT path: whole or absent, and nobody else's."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pi05_ros.backends import files
from pi05_ros.backends.engine import Precision
from pi05_ros.backends.errors import BackendError
from pi05_ros.backends.export.artifacts import graphs_for
from pi05_ros.backends.export.export_document import GraphPlan
from pi05_ros.backends.files import (
    cache_root,
    require_writable,
    wait_for_writer,
    whole_folder,
    write_atomically,
)
from pi05_ros.backends.identity import weights_id
from pi05_ros.backends.quantization.calibration import Calibration
from pi05_ros.backends.staged.shapes import StageShapes
from pi05_ros.backends.tensorrt import engine_store, verified
from pi05_ros.backends.tensorrt.engine_set import EngineSet, UnverifiedEngineError, open_set
from pi05_ros.backends.tensorrt.engine_store import build_engines, find_verified
from pi05_ros.model import Pi05

CPU = torch.device("cpu")


def test_folder_is_whole_or_untouched(tmp_path: Path) -> None:
    folder = tmp_path / "graphs"

    def write(words: list[str], fail: OSError | None = None) -> None:
        with whole_folder(folder, "index") as part:
            for word in words:
                write_atomically(part / word, b"new")
            if fail is not None:
                raise fail

    full = OSError(28, "No space left on device")
    with pytest.raises(BackendError, match=r"cannot write into .*graphs: .*No space left"):
        write(["index", "a"], full)
    with pytest.raises(BackendError, match=r"graphs: .*element 9.*is the disk full\?"):
        write(["index", "a"], OSError("problem writing element 9 to file"))
    assert not list(tmp_path.iterdir())
    write(["index", "a", "b"])
    (folder / "mine").write_text("kept")
    (folder / "a").write_text("old")
    with pytest.raises(BackendError):
        write(["a"], full)
    assert (folder / "a").read_text() == "old"
    write(["index", "a"])
    assert {path.name for path in folder.iterdir()} == {"index", "a", "b", "mine"}
    assert (folder / "a").read_text() == "new"
    assert list(tmp_path.iterdir()) == [folder]


def test_places_that_cannot_be_written_are_known_before(tmp_path: Path) -> None:
    require_writable(tmp_path / "new" / "folder")
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "inside"):
        with pytest.raises(BackendError, match="is not a folder we may write into"):
            require_writable(path)
        with pytest.raises(BackendError, match="cannot write"):
            write_atomically(path / "x", b"")


def test_failed_build_keeps_the_engines_that_were_there(
    install: Callable[..., Any], graphs_fp16: Path, tmp_path: Path
) -> None:
    from pi05_ros.backends.tensorrt.engine_set import open_set

    faults = install()
    from pi05_ros.backends.tensorrt.plan_compiler import BuildFlags

    def build(root: Path) -> EngineSet:
        return build_engines(graphs_fp16, BuildFlags(), CPU, root=root)

    found = build(tmp_path / "a")
    faults.parser_errors = [("/layers/0/x", "unsupported")]
    for root in (tmp_path / "a", tmp_path / "b"):
        with pytest.raises(BackendError, match="unsupported"):
            build(root)
    assert open_set(found.folder).graphs == found.graphs
    assert found.folder.stat().st_mode & 0o777 == 0o700
    assert not list((tmp_path / "b").rglob("engines/*"))


def test_a_folder_of_others_does_not_hide_a_good_one(
    install: Callable[..., Any],
    graphs_fp16: Path,
    tmp_path: Path,
    model: Pi05,
    shapes: StageShapes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install()
    from pi05_ros.backends.tensorrt.plan_compiler import BuildFlags

    good = build_engines(graphs_fp16, BuildFlags(), CPU, root=tmp_path)
    bad = build_engines(graphs_fp16, BuildFlags(optimization_level=2), CPU, root=tmp_path)
    bad.folder.chmod(0o777)
    monkeypatch.setattr(engine_store, "require_verified", lambda found, device: {})
    weights = weights_id(model)
    assert find_verified(weights, shapes, Precision(), CPU, tmp_path).folder == good.folder
    good.folder.chmod(0o777)
    with pytest.raises(UnverifiedEngineError, match=r"none of 2 .*others may write into"):
        find_verified(weights, shapes, Precision(), CPU, tmp_path)


def test_one_writer_at_a_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder, started = tmp_path / "graphs", threading.Event()
    waiting, ended = threading.Event(), threading.Event()
    seen: list[list[str]] = []

    def second() -> None:
        started.wait(10)
        with whole_folder(folder, "index") as part:
            seen.append([path.name for path in part.iterdir()])
            (part / "index").write_text("second")
        ended.set()

    thread = threading.Thread(target=second)
    thread.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files.log, "warning", lambda *words: waiting.set())
        with whole_folder(folder, "index") as part:
            (part / "a").write_text("first")
            started.set()
            assert waiting.wait(10)
            assert not ended.is_set()
            (part / "index").write_text("first")
        thread.join(10)
    assert ended.is_set()
    assert seen == [[]]
    assert {path.name: path.read_text() for path in folder.iterdir()} == {
        "index": "second", "a": "first",
    }  # fmt: skip
    assert not wait_for_writer(folder)


def test_leftovers_of_a_killed_process_do_not_count(tmp_path: Path) -> None:
    left = tmp_path / ".graphs.part"
    left.mkdir(mode=0o700)
    (left / "full.onnx").write_text("half of it")
    assert wait_for_writer(tmp_path / "graphs")
    left.mkdir(mode=0o700)
    (left / "full.onnx").write_text("half of it")
    with whole_folder(tmp_path / "graphs", "index") as part:
        (part / "index").write_text("")
    assert [path.name for path in tmp_path.rglob("*")] == ["graphs", "index"]


def test_a_folder_that_is_there_is_written_inside(tmp_path: Path) -> None:
    """It may be another disk, or the one place in its parent where we may write."""
    with whole_folder(tmp_path, "index") as part:
        assert part.parent == tmp_path
        (part / "index").write_text("")
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_engines_can_be_built_after_an_export_under_any_umask(
    install: Callable[..., Any],
    model: Pi05,
    shapes: StageShapes,
    calibration: Calibration,
    tmp_path: Path,
) -> None:
    """Ubuntu gives users the umask 0002."""
    install()
    from pi05_ros.backends.tensorrt.plan_compiler import BuildFlags

    before = os.umask(0o002)
    try:
        plan = GraphPlan(calibration=calibration)
        graphs, _ = graphs_for(model, weights_id(model), shapes, plan, tmp_path)
        found = build_engines(graphs, BuildFlags(), CPU, root=tmp_path)
    finally:
        os.umask(before)
    assert open_set(found.folder).graphs == found.graphs


def test_a_user_without_a_home(
    install: Callable[..., Any], model: Pi05, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    install()
    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_root() == tmp_path / "pi05_ros" / "trt"
    for value in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        with pytest.raises(BackendError, match=r"no home directory.*set XDG_CACHE_HOME"):
            cache_root()
    works, why = verified(model, Precision(), 2, 10, 12)
    assert not works
    assert "no home directory" in why
