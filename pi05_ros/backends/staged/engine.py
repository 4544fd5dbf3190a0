"""Common base of the engines that run the three stages separately (onnx, tensorrt, torch).

Host work per observation is small: gather prompt embeddings, place valid tokens in the static
slots, make positions and masks. The flow loop runs outside the denoise graph in float32, so the
number of steps stays a run-time choice and rounding does not pile up over the steps.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pi05_ros.backends.engine import (
    ASKED_FOR,
    Capabilities,
    Engine,
    EngineTimings,
    Guidance,
    Images,
    Precision,
    StageClock,
    require_plain,
)
from pi05_ros.backends.errors import BackendError
from pi05_ros.backends.resize import resize_with_pad, to_model_range
from pi05_ros.backends.staged.shapes import MASKED, StageShapes, StageSpec, stage_spec
from pi05_ros.backends.staged.stages import modulation_table
from pi05_ros.model import Pi05
from pi05_ros.model.sampler import DENOISE_STEPS

Tensors = Mapping[str, Tensor]


class StageRunner(Protocol):
    """One stage on one engine; inputs and outputs by the names of `shapes.stage_spec`."""

    def run(self, inputs: Tensors) -> dict[str, Tensor]:
        """Run once. The outputs may be overwritten by the next call."""

    def close(self) -> None:
        """Free what the runner holds; it cannot be used afterwards."""


class TorchRunner:
    """A stage module run by torch: the reference, and with quantizers the fake-quant one."""

    def __init__(self, module: nn.Module, spec: StageSpec) -> None:
        self.module = module
        self.inputs = tuple(tensor.name for tensor in spec.inputs)
        self.outputs = tuple(tensor.name for tensor in spec.outputs)

    @torch.no_grad()
    def run(self, inputs: Tensors) -> dict[str, Tensor]:
        """Run the module."""
        result = self.module(*(inputs[name] for name in self.inputs))
        values = result if isinstance(result, tuple) else (result,)
        return dict(zip(self.outputs, values, strict=True))

    def close(self) -> None:
        """Drop the module."""
        self.module = nn.Identity()


@dataclass(frozen=True)
class PrefixInputs:
    """One observation in the static slots of the stages.

    Attributes:
        pixels: ``[V, 3, S, S]``; unused slots are zero.
        prompt_embeddings: ``[1, L, W]``; unused slots are zero.
        mask: float32 ``[1, 1, 1, P]``, additive.
        positions: int32 ``[1, P]``.
        action_positions: int32 ``[1, H]``.
        valid: bool ``[P]``.

    """

    pixels: Tensor
    prompt_embeddings: Tensor
    mask: Tensor
    positions: Tensor
    action_positions: Tensor
    valid: Tensor


def model_images(images: Images, size: int, device: torch.device) -> Tensor:
    """Cameras in any form that `Engine.prefill` accepts -> float32 ``[v, 3, S, S]``."""
    ready = []
    for image in images:
        if image.numel() == 0:
            raise BackendError(f"image is empty: {list(image.shape)}")
        view = image.to(device)
        if view.dtype == torch.uint8 and view.ndim == 3 and view.shape[-1] == 3:
            view = to_model_range(resize_with_pad(view, size))
        if not view.is_floating_point() or tuple(view.shape) != (3, size, size):
            raise BackendError(
                f"image is {image.dtype} {list(image.shape)}; accepted: uint8 [H, W, 3] or "
                f"float [3, {size}, {size}] in [-1, 1]"
            )
        ready.append(view.to(device, torch.float32))
    return torch.stack(ready) if ready else torch.zeros(0, 3, size, size, device=device)


def prepare_prefix(
    model: Pi05,
    shapes: StageShapes,
    images: Tensor,
    tokens: Tensor,
    dtype: torch.dtype,
    device: torch.device,
) -> PrefixInputs:
    """Put cameras and prompt into their slots.

    Args:
        model: gives the prompt embeddings.
        shapes: slots.
        images: ``[v, 3, S, S]`` with v <= views; the others are absent.
        tokens: int64 ``[n]`` with n <= prompt slots, no padding.
        dtype: of activations.
        device: where the stages run.

    Raises:
        BackendError: more cameras or tokens than slots.

    """
    count, length = images.shape[0], tokens.shape[0]
    if count > shapes.views:
        raise BackendError(
            f"{count} cameras for graphs exported with {shapes.views}; export again with "
            f"--views {count}"
        )
    if not 1 <= length <= shapes.prompt_tokens:
        raise BackendError(
            f"the prompt has {length} tokens, the graphs hold 1 to {shapes.prompt_tokens}; "
            "export again with a larger --max-prompt-tokens"
        )
    pixels = torch.zeros(shapes.views, 3, *images.shape[2:], dtype=dtype, device=device)
    pixels[:count] = images.to(device, dtype)
    prompt = torch.zeros(1, shapes.prompt_tokens, shapes.width, dtype=dtype, device=device)
    prompt[0, :length] = model.embed_prompt(tokens.to(model.device)).to(device, dtype)
    valid = torch.zeros(shapes.prefix, dtype=torch.bool)
    valid[: count * shapes.image_tokens] = True
    start = shapes.views * shapes.image_tokens
    valid[start : start + length] = True
    positions = (valid.to(torch.int32).cumsum(0) - 1).clamp(min=0).to(torch.int32)
    first = int(valid.sum())
    action_positions = torch.arange(first, first + shapes.horizon, dtype=torch.int32)
    mask = torch.where(valid, 0.0, MASKED).to(torch.float32)
    return PrefixInputs(
        pixels=pixels,
        prompt_embeddings=prompt,
        mask=mask[None, None, None].to(device),
        positions=positions[None].to(device),
        action_positions=action_positions[None].to(device),
        valid=valid.to(device),
    )


@dataclass(frozen=True)
class StagedKVCache:
    """KV cache of one observation in static slots."""

    keys: Tensor
    values: Tensor
    mask: Tensor
    action_positions: Tensor

    def step_inputs(self, x: Tensor, modulation: Tensor) -> dict[str, Tensor]:
        """Inputs of a denoise step at ``x``; ``modulation`` is of one step, or of all."""
        cache = {field.name: getattr(self, field.name) for field in fields(self)}
        return {"x_t": x, "modulation": modulation, **cache}


class StagedEngine(Engine):
    """An `Engine` over three stage runners.

    Args:
        model: gives prompt embeddings and the modulation of the expert; where it lives does not
            matter.
        shapes: static shapes of the runners.
        runners: "vision", "prefill" and "denoise_step".
        backend: name for logs and diagnostics.
        precision: what each stage runs in.
        dtype: of activations between the stages.
        device: where the runners want their inputs.
        reason: why this backend was chosen.
        overlap: whether runners of different stages may run at the same time.

    """

    def __init__(
        self,
        model: Pi05,
        shapes: StageShapes,
        runners: Mapping[str, StageRunner],
        *,
        backend: str,
        precision: Precision,
        dtype: torch.dtype,
        device: torch.device,
        reason: str = ASKED_FOR,
        overlap: bool = False,
    ) -> None:
        self.model = model
        self.shapes = shapes
        self.runners = dict(runners)
        self.backend = backend
        self.precision = precision
        self.dtype = dtype
        self.device = device
        self.horizon = shapes.horizon
        self.reason = reason
        self._overlap = overlap
        self._clock = StageClock()
        self._tables: dict[int, Tensor] = {}

    @classmethod
    def on_torch(
        cls,
        model: Pi05,
        shapes: StageShapes,
        modules: Mapping[str, nn.Module],
        dtype: torch.dtype,
        **facts: Any,
    ) -> StagedEngine:
        """Engine whose stages torch runs, where the model is; `facts` as of the constructor."""
        runners = {
            stage: TorchRunner(module, stage_spec(stage, shapes, dtype))
            for stage, module in modules.items()
        }
        return cls(model, shapes, runners, dtype=dtype, device=model.device, **facts)

    @property
    def timings(self) -> EngineTimings:
        """Of the last `prefill` and of the `denoise` since."""
        return self._clock.timings

    @property
    def capabilities(self) -> Capabilities:
        """Overlap where the runners share nothing that either half writes."""
        return Capabilities(overlap=self._overlap)

    def modulation(self, steps: int) -> Tensor:
        """The expert's modulation for a number of steps, computed on first use."""
        if steps not in self._tables:
            self._tables[steps] = modulation_table(self.model, steps, self.device)
        return self._tables[steps]

    def _require_open(self) -> None:
        if not self.runners:
            raise BackendError("this engine is closed")

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def prefix(self, images: Images, tokens: Tensor) -> PrefixInputs:
        """Inputs of the stages for an observation; see `Engine.prefill` for the arguments."""
        ready = model_images(images, self.shapes.image_size, self.device)
        return prepare_prefix(self.model, self.shapes, ready, tokens, self.dtype, self.device)

    def embeddings(self, inputs: PrefixInputs) -> Tensor:
        """Vision: ``[1, P, W]``, image tokens then prompt."""
        tokens = self.runners["vision"].run({"pixels": inputs.pixels})["image_tokens"]
        return torch.cat((tokens.flatten(0, 1)[None], inputs.prompt_embeddings), dim=1)

    @torch.no_grad()
    def prefill(
        self, images: Images, tokens: Tensor, *, camera_keys: Sequence[Hashable] | None = None
    ) -> StagedKVCache:
        """Vision and prefill; see `Engine.prefill`. Camera keys are refused."""
        self._require_open()
        require_plain(self.backend, camera_keys=camera_keys)
        inputs = self.prefix(images, tokens)
        started = self._now()
        embeddings = self.embeddings(inputs)
        seen = self._now()
        found = self.runners["prefill"].run(
            {"embeddings": embeddings, "positions": inputs.positions, "mask": inputs.mask}
        )
        done = self._now()
        self._clock.prefill_done(1e3 * (seen - started), 1e3 * (done - seen))
        return StagedKVCache(found["keys"], found["values"], inputs.mask, inputs.action_positions)

    @torch.no_grad()
    def denoise(
        self,
        cache: StagedKVCache,
        noise: Tensor,
        *,
        steps: int = DENOISE_STEPS,
        guidance: Guidance | None = None,
        frozen: Tensor | None = None,
    ) -> Tensor:
        """Flow from noise to actions; see `Engine.denoise`. What continues a chunk is refused."""
        self._require_open()
        require_plain(self.backend, guidance=guidance, frozen=frozen)
        expected = (self.shapes.horizon, self.shapes.action_dim)
        if tuple(noise.shape) != expected:
            raise BackendError(f"noise is {tuple(noise.shape)}, these graphs need {expected}")
        started = self._now()
        actions = self.flow(cache, noise.to(self.device, torch.float32)[None], steps)[0]
        finished = self._now()
        self._clock.denoise_done(1e3 * (finished - started))
        return actions

    def flow(self, cache: StagedKVCache, x: Tensor, steps: int) -> Tensor:
        """Euler loop over the denoise stage, float32 ``[1, H, A]``."""
        table = self.modulation(steps)
        step = self.runners["denoise_step"]
        for index in range(steps):
            v = step.run(cache.step_inputs(x, table[index]))["velocity"]
            x = x - (1.0 / steps) * v
        return x

    def close(self) -> None:
        """Close the runners."""
        for runner in self.runners.values():
            runner.close()
        self.runners.clear()
