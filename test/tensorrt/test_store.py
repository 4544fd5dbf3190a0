"""Files of the TensorRT path: whole or absent, and nobody else's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pi05_ros.backends.engine import Precision
from pi05_ros.backends.errors import BackendError
from pi05_ros.backends.tensorrt import engines
from pi05_ros.backends.tensorrt.engines import UnprovenEngineError, build_engines, find_proven
from pi05_ros.backends.tensorrt.identity import weights_id
from pi05_ros.backends.tensorrt.shapes import StageShapes
from pi05_ros.backends.tensorrt.store import require_writable, whole_folder, write_atomically
from pi05_ros.model import Pi05

CPU = torch.device("cpu")


def test_folder_is_whole_or_untouched(tmp_path: Path) -> None:
    folder = tmp_path / "graphs"

    def write(words: list[str], fail: bool) -> None:
        with whole_folder(folder, "index") as part:
            for word in words:
                write_atomically(part / word, b"new")
            if fail:
                raise OSError(28, "No space left on device")

    with pytest.raises(BackendError, match=r"cannot write into .*graphs: .*No space left"):
        write(["index", "a"], fail=True)
    assert not list(tmp_path.iterdir())
    write(["index", "a", "b"], fail=False)
    (folder / "mine").write_text("kept")
    (folder / "a").write_text("old")
    with pytest.raises(BackendError):
        write(["a"], fail=True)
    assert (folder / "a").read_text() == "old"
    write(["index", "a"], fail=False)
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
    from pi05_ros.backends.tensorrt.engines import open_set

    faults = install()
    from pi05_ros.backends.tensorrt.compile import BuildFlags

    def build(root: Path) -> engines.EngineSet:
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
    from pi05_ros.backends.tensorrt.compile import BuildFlags

    good = build_engines(graphs_fp16, BuildFlags(), CPU, root=tmp_path)
    bad = build_engines(graphs_fp16, BuildFlags(optimization_level=2), CPU, root=tmp_path)
    bad.folder.chmod(0o777)
    monkeypatch.setattr(engines, "require_proof", lambda found: {})
    weights = weights_id(model)
    assert find_proven(weights, shapes, Precision(), CPU, tmp_path).folder == good.folder
    good.folder.chmod(0o777)
    with pytest.raises(UnprovenEngineError, match=r"none of 2 .*others may write into"):
        find_proven(weights, shapes, Precision(), CPU, tmp_path)
