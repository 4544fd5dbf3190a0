"""What engines belong to, and what works without the optional packages."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pi05_ros.backends.cache import private_folder
from pi05_ros.backends.errors import BackendError
from pi05_ros.backends.files import model_folder
from pi05_ros.backends.identity import engine_key, key_document, weights_id
from pi05_ros.model import Pi05, Pi05Config

ROOT = Path(__file__).resolve().parents[2]

WITHOUT_PACKAGES = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

BLOCKED = {"onnx", "onnxscript", "onnx_ir", "onnxruntime", "modelopt", "tensorrt", "matplotlib",
           "torch_tensorrt", "tensorrt_rtx"}
sys.meta_path.insert(0, Blocker())
import importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: (
    None if name.split(".")[0] in BLOCKED else real(name, package)
)
from pi05_ros.backends import BackendError, create_engine, onnx, tensorrt
from pi05_ros.backends.experimental import torch_tensorrt
from pi05_ros.backends.export import export, mlp_only
from pi05_ros.backends.quantization import modelopt_quantizers
from pi05_ros.backends.verification import report, verify
from pi05_ros.workflows import build_engines, calibrate_stages, check_engines, export_graphs
from pi05_ros.model import Pi05, Pi05Config
print(onnx.usable()[1])
print(tensorrt.usable()[1])
model = Pi05.random(Pi05Config.preset("tiny"), 0)
for action in (
    export.require_onnx,
    modelopt_quantizers.modelopt_version,
    torch_tensorrt.load_compiler,
    lambda: create_engine(model, "onnx"),
    lambda: create_engine(model, "tensorrt"),
):
    try:
        action()
    except BackendError as error:
        print(error)
    else:
        raise AssertionError("worked without its packages")
print(create_engine(model, "auto").backend)
"""


def test_everything_imports_and_explains_itself_without_optional_packages() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_PACKAGES],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.strip().splitlines()
    assert lines[0].startswith("onnxruntime is not installed: pip install onnx")
    assert "tensorrt is not installed: pip install tensorrt-cu13" in lines[1]
    assert "exporting needs onnx" in lines[2]
    assert "nvidia-modelopt, which is not installed: pip install" in lines[3]
    assert "torch-tensorrt is not installed: pip install" in lines[4]
    assert "onnxruntime is not installed" in lines[5]
    assert "tensorrt is not installed" in lines[6]
    assert lines[7] == "eager"


def test_identity_follows_the_weights_not_their_dtype() -> None:
    config = Pi05Config.preset("tiny")
    model = Pi05.random(config, 1)
    first = weights_id(model)
    assert first.startswith("sha256:")
    assert weights_id(Pi05.random(config, 1, torch.bfloat16)) == first
    assert weights_id(Pi05.random(config, 2)) != first
    assert weights_id(Pi05.random(replace(config, rope="openpi-bf16"), 1)) != first
    with torch.no_grad():
        model.action_in_proj.weight.add_(1.0)
    assert weights_id(model) != first


def test_every_part_of_the_key_counts() -> None:
    parts = {
        "graph_hash": "g",
        "weights": "w",
        "shapes": {"views": 2},
        "flavor": "tensorrt",
        "tensorrt": "10.13.3.9",
        "target": "",
        "machine": {"gpu": "Thor", "driver": "1"},
        "flags": {"optimization_level": 3},
    }
    key = engine_key(key_document(**parts))  # type: ignore[arg-type]
    assert key == engine_key(key_document(**dict(reversed(parts.items()))))  # type: ignore[arg-type]
    for name, value in parts.items():
        other = {"changed": 1} if isinstance(value, dict) else "changed"
        changed = key_document(**{**parts, name: other})  # type: ignore[arg-type]
        assert engine_key(changed) != key


def test_cache_folder_is_ours_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = private_folder(model_folder("sha256:ab/../cd"))
    assert folder == tmp_path / "pi05_ros" / "trt" / "sha256_ab____cd"
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o770)
    with pytest.raises(BackendError, match="chmod go-w"):
        private_folder(folder)
    monkeypatch.setattr("os.getuid", lambda: 12345)
    with pytest.raises(BackendError, match="belongs to another user"):
        private_folder(folder)
