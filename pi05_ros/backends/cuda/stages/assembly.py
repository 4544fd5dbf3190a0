"""Weights, buffers and stages of one engine, on the kernels that suit its device and precision."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pi05_ros.backends.cuda.buffers import Buffers
from pi05_ros.backends.cuda.pack_model import pack
from pi05_ros.backends.cuda.stages import choice
from pi05_ros.backends.cuda.stages.beside_prefill import BesidePrefill
from pi05_ros.backends.cuda.stages.denoise import DenoiseKernels
from pi05_ros.backends.cuda.stages.hopper_denoise import HopperDenoiseKernels
from pi05_ros.backends.cuda.stages.hopper_prefill import HopperPrefixKernels
from pi05_ros.backends.cuda.stages.prefill import PrefixKernels
from pi05_ros.backends.cuda.tuning import Tuning
from pi05_ros.backends.cuda.weights import Weights
from pi05_ros.backends.engine import Precision
from pi05_ros.model import Pi05


@dataclass(frozen=True)
class Sizes:
    """What an engine has room for."""

    views: int
    prompt_tokens: int
    horizon: int  # that is asked for first; others are taken too
    slots: int


@dataclass(frozen=True)
class Assembly:
    """The parts of an engine; stages launch their kernels on the buffers."""

    weights: Weights
    buffers: Buffers
    prefix: PrefixKernels
    denoise: DenoiseKernels


def assemble(
    model: Pi05,
    precision: Precision,
    tuning: Tuning,
    sizes: Sizes,
    *,
    release: bool,
    dependent: bool | None,
) -> Assembly:
    """Pack a model for the kernels that `tuning` asks for and this device can run.

    Args:
        model: on the device.
        precision: resolved, per stage.
        tuning: kernel choices.
        sizes: what to make room for.
        release: empty the model's modules on the way.
        dependent: launch kernels before those in front have finished; None: as tuned.

    """
    config, device = model.config, model.device
    rows = sizes.views * config.vision.tokens + sizes.prompt_tokens
    case = (config, precision, tuning, device, rows)
    image = choice.usable_for_prefill(*case)
    weights = pack(
        model,
        precision,
        release=release,
        fused_gate_up=image
        or (precision.prefill != "int8" and tuning.fuses_gate_up(config.vlm.mlp_dim)),
        prefix_image=image,
        projection_image=image and choice.projects(config, rows),
        expert_image=choice.usable(*case, sizes.horizon),
        fold_norms=choice.folds_norms(config, precision, tuning, device),
    )
    parts = choice.part_rows(tuning, rows) if image else 0
    buffers = Buffers(weights, sizes.views, sizes.prompt_tokens, sizes.slots, device, parts)
    if dependent is None:
        dependent = tuning.flag("dependent_launch")
    prefix = prefix_stages(weights, buffers, tuning, dependent)
    return Assembly(weights, buffers, prefix, denoise_stage(weights, buffers, tuning, prefix))


def prefix_stages(
    weights: Weights, buffers: Buffers, tuning: Tuning, dependent: bool
) -> PrefixKernels:
    """Vision and prefill on the kernels that the weights are packed for."""
    made = HopperPrefixKernels if weights.prefix_image else PrefixKernels
    return made(weights, buffers, tuning, dependent)


def denoise_stage(
    weights: Weights, buffers: Buffers, tuning: Tuning, prefix: PrefixKernels
) -> DenoiseKernels:
    """The stage for the form in which the expert's weights are packed."""
    made = HopperDenoiseKernels if weights.expert_image else DenoiseKernels
    return made(weights, buffers, tuning, prefix)


def beside_prefill(weights: Weights, tuning: Tuning, device: torch.device) -> BesidePrefill | None:
    """What runs the first step beside prefill; None: it comes behind.

    The tuning data says whether, where denoising runs on the Hopper kernels and prefill on those
    too or both in BF16: with others nothing was gained.
    """
    kinds = weights.precision
    measured = weights.prefix_image or kinds.prefill == kinds.denoise == "bf16"
    if (
        device.type == "cuda"
        and tuning.flag("beside_prefill")
        and weights.expert_image
        and measured
    ):
        return BesidePrefill(device)
    return None
