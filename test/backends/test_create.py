"""Choosing a backend: imported only when asked for, refused with the reason."""

import subprocess
import sys
import types
from pathlib import Path

import pytest

from pi05_ros.backends import BackendError, create, create_engine
from pi05_ros.backends.eager import EagerEngine
from pi05_ros.model import Pi05, Pi05Config


@pytest.fixture(scope="module")
def model():
    return Pi05.random(Pi05Config.preset("tiny"), seed=0)


@pytest.fixture
def backend(monkeypatch):
    """Put a module in the place of the onnx backend."""

    def install(**content):
        module = types.ModuleType("fake_backend")
        vars(module).update(content)
        module.__spec__ = types.SimpleNamespace(name="fake_backend")
        monkeypatch.setitem(sys.modules, "fake_backend", module)
        monkeypatch.setitem(create._FACTORIES, "onnx", ("fake_backend", "create"))

    return install


def test_arguments_reach_the_backend(model, backend):
    seen = {}

    def factory(model, **arguments):
        seen.update(arguments)
        return EagerEngine(model)

    backend(create=factory, usable=lambda: (True, "fine"))
    engine = create_engine(
        model, "onnx", {"vision": "fp16"}, views=3, horizon=7, max_prompt_tokens=64, cache="x"
    )
    assert engine.reason == "asked for"
    assert seen["precision"].vision == "fp16"
    assert {k: seen[k] for k in ("views", "horizon", "max_prompt_tokens", "cache")} == {
        "views": 3, "horizon": 7, "max_prompt_tokens": 64, "cache": "x",
    }  # fmt: skip


def test_backend_that_cannot_run_says_why(model, backend):
    backend(create=EagerEngine, usable=lambda: (False, "no such chip"))
    with pytest.raises(BackendError, match=r"'onnx' cannot run here: no such chip.*'eager'"):
        create_engine(model, "onnx")


def test_backend_without_a_factory_is_not_installed(model, backend):
    backend()
    with pytest.raises(BackendError, match="not part of this installation"):
        create_engine(model, "onnx")


def test_backend_module_that_is_missing(model, monkeypatch):
    monkeypatch.setitem(create._FACTORIES, "onnx", ("pi05_ros.backends.gone", "create"))
    with pytest.raises(BackendError, match="not part of this installation; there: eager"):
        create_engine(model, "onnx")


def test_auto_ignores_options_of_the_backend_it_did_not_take(model):
    assert create_engine(model, "auto", graphs=True).backend == "eager"


def test_eager_imports_no_other_backend():
    code = (
        "import sys\n"
        "from pi05_ros.backends import create_engine\n"
        "from pi05_ros.model import Pi05, Pi05Config\n"
        "create_engine(Pi05.random(Pi05Config.preset('tiny')), 'eager')\n"
        "names = ('onnxruntime', 'tensorrt', 'modelopt', 'triton', 'rclpy', 'sentencepiece')\n"
        "found = [n for n in names if n in sys.modules]\n"
        "found += [m for m in sys.modules if m.startswith('pi05_ros.backends.')\n"
        "          and m.split('.')[2] in ('cuda', 'onnx', 'tensorrt')]\n"
        "assert not found, found\n"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
