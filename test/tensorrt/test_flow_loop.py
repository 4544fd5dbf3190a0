"""The flow loop over bound buffers, as one graph on a GPU and step by step elsewhere."""

from __future__ import annotations

import pytest
import torch

from pi05_ros.backends.tensorrt.flow_loop import FlowLoop

STEPS, HORIZON, ACTIONS = 4, 6, 32


class BoundStage:
    """A velocity computed in place from buffers, as an engine does."""

    def __init__(self, device: str) -> None:
        self.buffers = {
            "x_t": torch.zeros(1, HORIZON, ACTIONS, device=device),
            "velocity": torch.zeros(1, HORIZON, ACTIONS, device=device),
            "modulation": torch.zeros(3, ACTIONS, device=device),
            "keys": torch.ones(1, device=device),
        }
        self.runs = 0
        self.capture = True

    def capturable(self, stream: int) -> bool:
        return self.capture

    def enqueue(self) -> None:
        self.runs += 1
        b = self.buffers
        b["velocity"].copy_(torch.tanh(b["x_t"] * b["modulation"][0] + b["keys"]))


def expected(noise: torch.Tensor, table: torch.Tensor, key: float) -> torch.Tensor:
    x = noise.clone()
    for row in table:
        x = x - (1.0 / STEPS) * torch.tanh(x * row[0] + key)
    return x


def run_on(device: str, *, capture: bool, capturable: bool = True) -> BoundStage:
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(STEPS, 3, ACTIONS, generator=generator)
    stage = BoundStage(device)
    stage.capture = capturable
    loop = FlowLoop(stage, table.to(device), capture=capture)
    for key in (1.0, 2.0):  # the second time a graph is replayed, with another prefix
        stage.buffers["keys"].fill_(key)
        noise = torch.randn(1, HORIZON, ACTIONS, generator=generator)
        found = loop.run(noise.to(device))
        torch.testing.assert_close(found.cpu(), expected(noise, table, key))
    again = loop.run(noise.to(device))
    assert torch.equal(again, found)
    assert again.data_ptr() != stage.buffers["x_t"].data_ptr()
    loop.close()
    return stage


def test_step_by_step() -> None:
    assert run_on("cpu", capture=False).runs == 3 * STEPS


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_as_one_cuda_graph() -> None:
    # Two warm-up loops, one captured; replays run no Python.
    assert run_on("cuda", capture=True).runs == 3 * STEPS


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_an_engine_that_cannot_be_captured_runs_step_by_step() -> None:
    assert run_on("cuda", capture=True, capturable=False).runs == (2 + 3) * STEPS
