"""`pi05 build --flavor rtx --target ...` on a machine without a GPU, and what it refuses."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pi05_ros.backends.tensorrt import flavor
from pi05_ros.backends.tensorrt.engine_report import require_verified
from pi05_ros.backends.tensorrt.engine_set import (
    UnverifiedEngineError,
    export_of,
    open_set,
    require_match,
)
from pi05_ros.backends.tensorrt.flavor import RTX, TENSORRT, recommended, usable_flavor
from pi05_ros.cli.main import main

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="no wheel of TensorRT for RTX"
)
CPU = torch.device("cpu")


def build(cache: Path, *words: str) -> int:
    return main(["build", "random:tiny", "--cache", str(cache), "--flavor", "rtx", *words])


def test_compiled_for_another_machine_and_refused_here(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "cache"
    shutil.copytree(cache, root)
    assert build(root, "--target", "sm120,sm89") == 0
    said = capsys.readouterr()
    assert "TensorRT for RTX 1." in said.out
    assert "for sm89" in said.out
    assert "`pi05 check` has passed on a machine with sm120" in said.out
    assert "tensorrt_rtx --onnx=" in said.err
    sets = [open_set(path.parent) for path in root.glob("*/engines/*/key.json")]
    assert {found.document["target"] for found in sets} == {"sm89", "sm120"}
    for found in sets:
        assert found.flavor is RTX
        assert found.document["machine"] == {}
        with pytest.raises(UnverifiedEngineError, match="the engines are for sm"):
            require_match(found, found.document["weights"], CPU)
        with pytest.raises(UnverifiedEngineError, match="never checked here"):
            require_verified(found, CPU)
        layers = json.loads((found.folder / "layers_prefill.json").read_text())
        assert len(layers["Network"]["softmax"]) == 2
    # Moved to the robot with the folder of its graphs.
    moved = tmp_path / "robot"
    shutil.copytree(root, moved)
    shutil.rmtree(root)
    there = open_set(moved / sets[0].folder.relative_to(root))
    assert export_of(there).is_relative_to(moved)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--target", "sm90"], "'sm90' is unknown"),
        (["--target", "sm86"], "sm86 has no FP8; it begins with sm89"),
        ([], "compiles without one for a GPU that you name: --target"),
        (["--target", "sm89", "--flavor", "tensorrt"], "--target goes with --flavor rtx"),
        (["--target", "sm89", "--workspace-mib", "-1"], "accepted are 0 and more"),
    ],
)
def test_what_cannot_be_built_is_one_line(
    words: list[str], message: str, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if not words and torch.cuda.is_available():
        pytest.skip("there is a GPU to build for")
    assert build(cache, *words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1


def test_nothing_half_written_is_left_by_a_build_that_fails(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "cache"
    shutil.copytree(cache, root)
    from pi05_ros.backends.tensorrt import engine_store

    real = engine_store.compile_plan
    done: list[str] = []

    def killed(onnx: Path, *args: object, **options: object) -> object:
        if done:
            raise KeyboardInterrupt
        done.append(onnx.name)
        return real(onnx, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(engine_store, "compile_plan", killed)
    with contextlib.suppress(KeyboardInterrupt):
        assert build(root, "--target", "sm89") != 0
    assert done
    assert not list(root.glob("*/engines/*/key.json"))


def test_the_flavor_for_each_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """RTX 20 to 50, RTX PRO and GB10: RTX; A100, Orin, Hopper, B200, Thor: full TensorRT."""
    for capability in ((7, 5), (8, 6), (8, 9), (12, 0), (12, 1)):
        assert recommended(capability) is RTX
    for capability in ((7, 0), (8, 0), (8, 7), (9, 0), (10, 0), (10, 1), (11, 0)):
        assert recommended(capability) is TENSORRT
    missing = replace(TENSORRT, module="no_tensorrt_of_this_name")
    monkeypatch.setattr(flavor, "TENSORRT", missing)
    assert usable_flavor((8, 0)) is RTX
    with pytest.raises(flavor.BackendError, match="not installed: pip install tensorrt"):
        usable_flavor((9, 0))
