"""The `tensorrt` engine: staged engine over plans, flow loop in one CUDA graph."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pi05_ros.backends.engine import ASKED_FOR, Images
from pi05_ros.backends.export.export_document import DTYPES
from pi05_ros.backends.export.mlp_only import join_runners
from pi05_ros.backends.staged.engine import StagedEngine, StagedKVCache
from pi05_ros.backends.tensorrt.engine_set import EngineSet
from pi05_ros.backends.tensorrt.engine_store import load_runners
from pi05_ros.backends.tensorrt.flow_loop import FlowLoop
from pi05_ros.model import Pi05


class TensorrtEngine(StagedEngine):
    """Three plans that share scratch memory.

    Args:
        model: prompt embeddings and modulation.
        engines: the plans.
        device: the GPU.
        cuda_graph: capture the flow loop.
        reason: for logs.

    """

    def __init__(
        self,
        model: Pi05,
        engines: EngineSet,
        device: torch.device,
        *,
        cuda_graph: bool = True,
        reason: str = ASKED_FOR,
    ) -> None:
        loaded = load_runners(engines, device)
        self._plans: dict[str, Any] = dict(loaded.runners)
        self._kernels = loaded.kernels
        dtype = DTYPES[engines.document["flags"]["activation"]]
        super().__init__(
            model,
            engines.shapes,
            join_runners(model, engines.shapes, dtype, self._plans),
            backend="tensorrt",
            precision=engines.precision,
            dtype=dtype,
            device=device,
            reason=reason,
        )
        self.engines = engines
        self._capture = cuda_graph and device.type == "cuda"
        self._loops: dict[int, FlowLoop] = {}

    @torch.no_grad()
    def prefill(
        self, images: Images, tokens: Tensor, *, camera_keys: Sequence[Hashable] | None = None
    ) -> StagedKVCache:
        """Vision and prefill; the keys and values outlive the next observation."""
        found = super().prefill(images, tokens, camera_keys=camera_keys)
        return replace(found, keys=found.keys.clone(), values=found.values.clone())

    @torch.no_grad()
    def flow(self, cache: StagedKVCache, x: Tensor, steps: int) -> Tensor:
        """Euler loop on the engine's own buffers; captured once per number of steps."""
        stage = self._plans["denoise_step"]
        stage.load(cache.step_inputs(x, self.modulation(steps)[0]))
        if steps not in self._loops:
            self._loops[steps] = FlowLoop(stage, self.modulation(steps), capture=self._capture)
        actions = self._loops[steps].run(x)
        if self._kernels is not None:
            self._kernels.save()  # of the first runs; no kernel is compiled later
            self._kernels = None
        return actions

    def close(self) -> None:
        """CUDA graphs first, then contexts, then engines: the order TensorRT needs."""
        for loop in self._loops.values():
            loop.close()
        self._loops.clear()
        super().close()
        self._plans.clear()
