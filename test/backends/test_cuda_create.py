"""What the cuda backend refuses before it builds anything."""

from __future__ import annotations

import importlib.util
import inspect

import pytest
import torch

from pi05_ros.backends import BackendError, Precision, cuda


class OnGpu:
    """A model whose weights are on a CUDA device, as far as `create` looks."""

    device = torch.device("cuda", 1)


@pytest.fixture
def second_gpu(monkeypatch):
    """Two devices: the current one is too old, the model's is not."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.cuda, "get_device_capability", lambda d=None: (9, 0) if d is not None else (7, 5)
    )
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda d=None: "NVIDIA H100")
    if importlib.util.find_spec("triton") is None:
        found = importlib.util.find_spec("json")
        find = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name: found if name == "triton" else find(name)
        )


def test_the_device_of_the_model_counts(second_gpu):
    assert not cuda.usable()[0]
    assert cuda.usable(OnGpu.device) == (True, "CUDA device NVIDIA H100")


def test_unknown_options_are_named_with_those_there_are(second_gpu):
    with pytest.raises(BackendError, match=r"no option 'slot'; it has .*slots"):
        cuda.create(OnGpu(), Precision(), slot=2)


@pytest.mark.skipif(importlib.util.find_spec("triton") is not None, reason="Triton is there")
def test_a_triton_that_cannot_be_imported_is_a_clear_error(second_gpu):
    with pytest.raises(BackendError, match="another Triton"):
        cuda.create(OnGpu(), Precision())


def test_options_are_those_of_the_engine():
    pytest.importorskip("triton")
    from pi05_ros.backends.cuda.engine import CudaEngine

    sizes = {"self", "model", "precision", "horizon", "max_prompt_tokens", "views", "reason"}
    assert set(inspect.signature(CudaEngine.__init__).parameters) - sizes == set(cuda.OPTIONS)
