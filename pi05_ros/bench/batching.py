"""`pi05 bench batch`: requests of several robots in one call, or one after the other?

The plain model in BF16 runs vision, prefill and denoise once for a batch of 1, 2, 4, ... requests.
On a GPU each stage is a CUDA graph, so that launches, which a batch shares, do not count as work
that batching saves. What a batch of N takes stands beside N times what a batch of 1 takes: that is
what `pi05 serve` does, whose own kernels are faster than these at batch 1.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pi05_ros.backends import BackendError
from pi05_ros.bench.bench_requests import BatchBenchRequest
from pi05_ros.model import KVCache, Pi05, Pi05Config
from pi05_ros.model.sampler import flow_times


@dataclass(frozen=True)
class BatchRow:
    """Median milliseconds of one batch size.

    Attributes:
        batch: requests in one call.
        vision, prefill, denoise: of the whole batch.
        in_turn: of as many requests one after the other.

    """

    batch: int
    vision: float
    prefill: float
    denoise: float
    in_turn: float

    @property
    def total(self) -> float:
        """Of the whole batch."""
        return self.vision + self.prefill + self.denoise

    @property
    def answer_in_turn(self) -> float:
        """Mean time to an answer if the requests come together and take turns."""
        return self.in_turn * (self.batch + 1) / (2 * self.batch)


class BatchStages:
    """The three stages of one batch size with inputs that stay in place.

    Args:
        model: weights.
        batch: requests.
        request: sizes of each.

    """

    def __init__(self, model: Pi05, batch: int, request: BatchBenchRequest) -> None:
        self._model = model
        device, side = model.device, model.config.vision.image_size
        g = torch.Generator(device=device).manual_seed(1)
        images = (batch * request.views, 3, side, side)
        self._images = torch.rand(images, generator=g, device=device) * 2 - 1
        ids = (batch, request.tokens)
        tokens = torch.randint(0, model.config.vocab, ids, generator=g, device=device)
        self._prompt = model.embed_prompt(tokens)
        P = request.views * model.config.vision.tokens
        shape = (batch, P, self._prompt.shape[-1])
        self._seen = torch.randn(shape, generator=g, device=device).to(self._prompt.dtype)
        self._mask = torch.ones(batch, P + request.tokens, dtype=torch.bool, device=device)
        noise = (batch, request.horizon, model.config.action_dim)
        self._noise = torch.randn(noise, generator=g, device=device)
        times = flow_times(request.steps, model.config.clock)
        self._times = [torch.tensor(t, device=device) for t in times]
        self._cache: KVCache = self.prefill()

    def vision(self) -> Tensor:
        """All images of the batch through the tower."""
        return self._model.embed_images(self._images)

    def prefill(self) -> KVCache:
        """The prefix of every request."""
        embeddings = torch.cat((self._seen, self._prompt), dim=1)
        return self._model.prefill_embedded(embeddings, self._mask, compact=False)

    def denoise(self) -> Tensor:
        """Euler steps of the flow."""
        x, count = self._noise, len(self._times)
        for t in self._times:
            x = x - self._model.velocity(x, t, self._cache) / count
        return x


def captured(call: Callable[[], Any]) -> Callable[[], Any]:
    """A stage as a CUDA graph."""
    stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = call()  # what the graph writes to must live as long as it

    def replay() -> Any:
        graph.replay()
        return kept

    return replay


def median_ms(call: Callable[[], Any], runs: int, device: torch.device) -> float:
    """Median of single calls, each waited for."""
    if device.type == "cuda":
        call = captured(call)
    samples = []
    for _ in range(runs + 2):
        if device.type == "cuda":
            torch.cuda.synchronize()
        begin = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        samples.append(1e3 * (time.perf_counter() - begin))
    return float(np.median(samples[2:]))


@torch.no_grad()
def measure_batches(
    request: BatchBenchRequest, show: Callable[[BatchRow], None] = lambda row: None
) -> list[BatchRow]:
    """One row for each batch size, the first of batch 1; BackendError without the device."""
    device = torch.device(request.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BackendError("there is no CUDA device; --device cpu only shows that it runs")
    config = Pi05Config.preset(request.preset)
    build = Pi05.random_on_device if device.type == "cuda" else Pi05.random
    model = build(config, 0, torch.bfloat16, device)
    rows: list[BatchRow] = []
    for batch in (1, *(n for n in request.batches if n > 1)):
        stages = BatchStages(model, batch, request)
        vision, prefill, denoise = (
            median_ms(call, request.runs, device)
            for call in (stages.vision, stages.prefill, stages.denoise)
        )
        one = rows[0].total if rows else vision + prefill + denoise
        rows.append(BatchRow(batch, vision, prefill, denoise, batch * one))
        show(rows[-1])
        del stages
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return rows
