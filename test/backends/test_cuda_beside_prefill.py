"""Who waits for whom when the first step of the flow runs beside prefill: recorded streams."""

from __future__ import annotations

import contextlib

import pytest
import torch

from pi05_ros.backends.cuda.stages.beside_prefill import BesidePrefill

LAYERS = 6


class Recorded:
    """A stream that knows what its next kernel comes behind."""

    def __init__(self, device=None) -> None:
        self.device = device
        self.behind: set[str] = set()

    def enqueue(self, name: str) -> set[str]:
        before = set(self.behind)
        self.behind.add(name)
        return before

    def record_event(self) -> frozenset[str]:
        return frozenset(self.behind)

    def wait_event(self, event: frozenset[str]) -> None:
        assert event is not None
        self.behind |= event

    def wait_stream(self, other: Recorded) -> None:
        self.behind |= other.behind


@pytest.fixture
def main(monkeypatch):
    stream = Recorded()
    stream.enqueue("earlier")
    current = [stream]

    @contextlib.contextmanager
    def on(other):
        current.append(other)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "Stream", Recorded)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: current[-1])
    monkeypatch.setattr(torch.cuda, "stream", on)
    return stream


def test_each_layer_comes_behind_the_keys_of_its_own(main):
    before = {}

    def prefix(cached):
        main.enqueue("images")
        for layer in range(LAYERS):
            main.enqueue(f"keys {layer}")
            cached()

    def denoise(gate):
        branch = torch.cuda.current_stream()
        assert branch is not main
        before["entry"] = branch.enqueue("entry")
        for layer in range(LAYERS):
            gate(layer)
            before[layer] = branch.enqueue(f"layer {layer}")
        branch.enqueue("actions")

    BesidePrefill(torch.device("cpu")).run(prefix, denoise)
    assert before["entry"] == {"earlier"}
    for layer in range(LAYERS):
        assert f"keys {layer}" in before[layer]
        assert f"keys {layer + 1}" not in before[layer]
    assert {"actions", f"keys {LAYERS - 1}"} <= main.behind
