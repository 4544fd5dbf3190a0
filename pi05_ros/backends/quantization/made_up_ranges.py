"""Ranges without data, for a compiler: it sees number types and shapes, never values.

Nothing that they quantize may move a robot; a calibration measures its ranges on observations.
"""

from __future__ import annotations

import torch

from pi05_ros.backends.quantization.calibration import Calibration
from pi05_ros.backends.quantization.presets import expected_quantizers, preset
from pi05_ros.model import Pi05


@torch.no_grad()
def made_up_ranges(model: Pi05, name: str) -> Calibration:
    """True ranges of the weights, 12 for every activation; marked as made up."""
    choice = preset(name)
    amax: dict[str, torch.Tensor] = {}
    smooth: dict[str, torch.Tensor] = {}
    for quantizer in expected_quantizers(
        choice, model.config.vlm.depth, stages=("prefill", "denoise_step")
    ):
        if not quantizer.endswith("weight_quantizer"):
            amax[quantizer] = torch.tensor(1.0 if ".av.a_" in quantizer else 12.0)
            continue
        words = quantizer.split(".")
        layer = (model.vlm if words[0] == "prefill" else model.expert).layers[int(words[2])]
        owner = layer.mlp if "mlp" in words else layer.self_attn
        weight = getattr(owner, words[-2]).weight.detach().float()
        whole = not choice.per_channel or choice.is_fp4(words[0], words[-2])
        amax[quantizer] = weight.abs().max() if whole else weight.abs().amax(dim=1)
        if choice.algorithm == "smoothquant":
            factor = torch.full((weight.shape[1],), 0.9)
            smooth[quantizer.removesuffix(".weight_quantizer")] = factor
    return Calibration(name, amax, smooth, {"synthetic": True})
