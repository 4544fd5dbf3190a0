"""Static shapes of the exported stages and the names and types of their inputs and outputs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from pi05_ros.errors import InvalidValueError
from pi05_ros.model import Pi05Config

STAGES = ("vision", "prefill", "denoise_step")
# What is compiled: whole stages, or of the prefill only its MLPs (two thirds of its work) with
# torch doing the attention between them.
LAYOUTS = ("stages", "mlp_only")
MLP_GRAPH = "prefill_mlp_"
# Added to the logits of padding in float32. Finite on purpose: -inf makes NaN of rows without
# any valid key, and large negative values overflow in fused half-precision kernels.
MASKED = -1.0e4


@dataclass(frozen=True)
class StageShapes:
    """Everything that is fixed when a graph is exported.

    Attributes:
        views: camera slots; absent cameras are masked.
        image_tokens: tokens per camera.
        prompt_tokens: prompt slots; shorter prompts are masked.
        horizon: action steps H.

    """

    views: int
    image_size: int
    image_tokens: int
    prompt_tokens: int
    horizon: int
    action_dim: int
    depth: int
    width: int
    expert_width: int
    head_dim: int

    @staticmethod
    def of(config: Pi05Config, views: int, prompt_tokens: int, horizon: int) -> StageShapes:
        """Shapes for a model and the robot's number of cameras, prompt slots and horizon."""
        for name, value in (
            ("views", views),
            ("max_prompt_tokens", prompt_tokens),
            ("horizon", horizon),
        ):
            if value < 1:
                raise InvalidValueError(f"{name} must be at least 1, not {value}")
        if config.vlm.num_kv_heads != 1 or config.expert.num_kv_heads != 1:
            raise InvalidValueError("the exported stages need exactly one key/value head")
        side = config.vision.image_size // config.vision.patch_size
        return StageShapes(
            views=views,
            image_size=config.vision.image_size,
            image_tokens=side * side,
            prompt_tokens=prompt_tokens,
            horizon=horizon,
            action_dim=config.action_dim,
            depth=config.vlm.depth,
            width=config.vlm.width,
            expert_width=config.expert.width,
            head_dim=config.vlm.head_dim,
        )

    @property
    def prefix(self) -> int:
        """Prefix length P: all camera tokens, then the prompt slots."""
        return self.views * self.image_tokens + self.prompt_tokens

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON."""
        return asdict(self)


def graphs_of(layout: str, depth: int) -> tuple[str, ...]:
    """Names of the graphs of a layout; the last prefill layer has no MLP, only K and V."""
    if layout == "stages":
        return STAGES
    if layout == "mlp_only":
        mlps = (f"{MLP_GRAPH}{layer:02d}" for layer in range(depth - 1))
        return ("vision", *mlps, "denoise_step")
    raise InvalidValueError(f"unknown layout {layout!r}; accepted: {', '.join(LAYOUTS)}")


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a stage."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class StageSpec:
    """Inputs and outputs of a stage, in the order of the graph."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def stage_spec(stage: str, shapes: StageShapes, dtype: torch.dtype) -> StageSpec:
    """Names, shapes and dtypes of one stage; ``dtype`` is that of activations (fp16 or fp32).

    Stages: "vision", "prefill", "denoise_step", and "full" (all three with the flow loop
    unrolled; its number of steps is frozen in the graph).
    """
    s = shapes
    f32, i32 = torch.float32, torch.int32
    pixels = TensorSpec("pixels", (s.views, 3, s.image_size, s.image_size), dtype)
    image_tokens = TensorSpec("image_tokens", (s.views, s.image_tokens, s.width), dtype)
    prompt = TensorSpec("prompt_embeddings", (1, s.prompt_tokens, s.width), dtype)
    positions = TensorSpec("positions", (1, s.prefix), i32)
    mask = TensorSpec("mask", (1, 1, 1, s.prefix), f32)
    keys = TensorSpec("keys", (s.depth, 1, 1, s.prefix, s.head_dim), dtype)
    values = TensorSpec("values", keys.shape, dtype)
    x_t = TensorSpec("x_t", (1, s.horizon, s.action_dim), f32)
    own_positions = TensorSpec("action_positions", (1, s.horizon), i32)
    modulation = TensorSpec("modulation", (2 * s.depth + 1, 3 * s.expert_width), f32)
    velocity = TensorSpec("velocity", x_t.shape, f32)
    if stage == "vision":
        return StageSpec((pixels,), (image_tokens,))
    if stage == "prefill":
        embeddings = TensorSpec("embeddings", (1, s.prefix, s.width), dtype)
        return StageSpec((embeddings, positions, mask), (keys, values))
    if stage == "denoise_step":
        return StageSpec((x_t, modulation, keys, values, own_positions, mask), (velocity,))
    if stage.startswith(MLP_GRAPH):
        hidden = TensorSpec("hidden", (1, s.prefix, s.width), dtype)
        return StageSpec((hidden,), (TensorSpec("update", hidden.shape, dtype),))
    if stage == "full":
        noise = TensorSpec("noise", x_t.shape, f32)
        actions = TensorSpec("actions", x_t.shape, f32)
        return StageSpec((pixels, prompt, positions, mask, own_positions, noise), (actions,))
    raise InvalidValueError(f"unknown stage {stage!r}; accepted: {', '.join((*STAGES, 'full'))}")
