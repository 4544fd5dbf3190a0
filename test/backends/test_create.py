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
        return EagerEngine(model, reason=arguments["reason"])

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
        "from pi05_ros.model import Pi05, Pi05Config\n"
        "model = Pi05.random(Pi05Config.preset('tiny'))\n"
        "torchs = set(sys.modules)\n"  # torch imports Triton by itself where it is installed
        "from pi05_ros.backends import create_engine\n"
        "create_engine(model, 'eager')\n"
        "names = ('onnxruntime', 'tensorrt', 'modelopt', 'triton', 'rclpy', 'sentencepiece')\n"
        "found = [n for n in names if n in sys.modules and n not in torchs]\n"
        "found += [m for m in sys.modules if m.startswith('pi05_ros.backends.')\n"
        "          and m.split('.')[2] in ('cuda', 'onnx', 'tensorrt')]\n"
        "assert not found, found\n"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["onnx", "tensorrt"])
def test_options_that_a_backend_does_not_have_are_named(name, model, monkeypatch):
    module = create._FACTORIES[name][0]
    monkeypatch.setattr(f"{module}.usable", lambda: (True, ""))
    with pytest.raises(BackendError, match=f"backend '{name}' has no option 'chache'; .*cache"):
        create_engine(model, name, chache="/tmp")


def test_the_reason_is_not_an_option(model):
    with pytest.raises(BackendError, match="'eager' has no option 'reason'"):
        create_engine(model, "eager", reason="mine")


@pytest.mark.parametrize("failed", ["tensorrt", "cuda"])
def test_a_fallback_is_never_what_has_failed(failed, monkeypatch):
    """Proven engines may not load: too little GPU memory, say."""
    able = types.SimpleNamespace(verified=lambda *sizes: (True, "verified"))
    monkeypatch.setattr(create, "_usable", lambda name: (able, ""))
    monkeypatch.setattr(create.torch.cuda, "get_device_name", lambda device: "a GPU")
    on_gpu = types.SimpleNamespace(device=types.SimpleNamespace(type="cuda"))
    chosen = create._choose(on_gpu, create.Precision(), 2, 10, 12, failed)[0]
    assert chosen == {"tensorrt": "cuda", "cuda": "tensorrt"}[failed]
    built = []

    def build(backend, model, precision, sizes, options, reason):
        built.append(backend)
        if backend == "tensorrt":
            raise BackendError("out of memory")
        return types.SimpleNamespace(backend=backend, reason=reason)

    monkeypatch.setattr(create, "_build", build)
    engine = create_engine(on_gpu, "tensorrt", allow_fallback=True)
    assert built == ["tensorrt", "cuda"]
    assert engine.reason.startswith("fallback from tensorrt: out of memory")
