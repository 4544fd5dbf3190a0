"""Engines for the prefill's MLPs alone; torch runs the attention around them.

Two thirds of the prefill's work are its MLPs. Compiling just those leaves out what compilers
handle worst (rotary embedding, masks, softmax) and keeps each graph to three products, so this
layout is the way out where a whole prefill engine fails its check.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from pi05_ros.backends.quantization.calibration import Calibration
from pi05_ros.backends.quantization.modules import attach_quantizers
from pi05_ros.backends.quantization.presets import expected_quantizers
from pi05_ros.backends.staged.engine import StageRunner, TorchRunner
from pi05_ros.backends.staged.shapes import MLP_GRAPH, StageShapes, stage_spec
from pi05_ros.backends.staged.stages import make_stage, prefill_mlp
from pi05_ros.model import Pi05


def mlp_module(
    model: Pi05, graph: str, dtype: torch.dtype, calibration: Calibration | None
) -> nn.Module:
    """MLP of one prefill layer, by graph name, with its quantizers."""
    layer = int(graph.removeprefix(MLP_GRAPH))
    root = nn.ModuleDict({"mlp": prefill_mlp(model, layer, dtype)})
    if calibration is not None:
        depth = model.config.vlm.depth
        expected = expected_quantizers(calibration.choice, depth, stages=("prefill",))
        inside = nn.ModuleDict({"layers": nn.ModuleDict({str(layer): root})})
        attach_quantizers(inside, "prefill", calibration, expected)
    return root["mlp"].eval()


class _EngineMlp(nn.Module):
    """An MLP that a runner computes."""

    def __init__(self, runner: StageRunner) -> None:
        super().__init__()
        self._runner = runner

    def forward(self, hidden: Tensor) -> Tensor:
        """``[1, P, W]`` -> ``[1, P, W]``, the runner's own buffer."""
        return self._runner.run({"hidden": hidden})["update"]


class MlpPrefillRunner(TorchRunner):
    """The prefill stage on torch with its MLPs on engines; a `StageRunner` for "prefill".

    Args:
        model: weights of everything but the MLPs.
        shapes: static shapes.
        dtype: of activations.
        mlps: graph name -> runner, one per layer but the last.

    """

    def __init__(
        self,
        model: Pi05,
        shapes: StageShapes,
        dtype: torch.dtype,
        mlps: Mapping[str, StageRunner],
    ) -> None:
        stage = make_stage(model, "prefill", dtype)
        layers = cast(nn.ModuleList, stage.layers)
        for graph, runner in mlps.items():
            layers[int(graph.removeprefix(MLP_GRAPH))].mlp = _EngineMlp(runner)
        self.mlps = dict(mlps)
        super().__init__(stage, stage_spec("prefill", shapes, dtype))

    def close(self) -> None:
        """Close the MLPs and drop the stage."""
        for runner in self.mlps.values():
            runner.close()
        self.mlps.clear()
        super().close()


def join_runners(
    model: Pi05, shapes: StageShapes, dtype: torch.dtype, graphs: Mapping[str, StageRunner]
) -> dict[str, StageRunner]:
    """Runners of the three stages from the runners of a layout's graphs."""
    mlps = {name: runner for name, runner in graphs.items() if name.startswith(MLP_GRAPH)}
    if not mlps:
        return dict(graphs)
    whole = {stage: graphs[stage] for stage in ("vision", "denoise_step")}
    return {**whole, "prefill": MlpPrefillRunner(model, shapes, dtype, mlps)}
