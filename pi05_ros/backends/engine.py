"""The one interface of all backends: three stages, each at its own precision.

vision   uint8 ``[Hc, Wc, 3]`` or float ``[3, S, S]`` per camera -> image tokens
prefill  image tokens and prompt tokens -> KV cache (a `Context`)
denoise  KV cache and noise ``[H, 32]`` -> normalized actions ``[H, 32]``
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from pi05_ros.errors import InvalidValueError
from pi05_ros.model.guidance import MAX_GUIDANCE

PRECISIONS = ("auto", "fp32", "bf16", "fp16", "fp8")
DENOISE_PRECISIONS = (*PRECISIONS, "fp8-w8a16")
"""Denoise alone may keep 16-bit activations against e4m3 weights (backend cuda)."""


@dataclass(frozen=True)
class Precision:
    """Arithmetic of each stage; "auto" lets the backend choose."""

    vision: str = "auto"
    prefill: str = "auto"
    denoise: str = "auto"

    def __post_init__(self) -> None:
        for stage in ("vision", "prefill", "denoise"):
            value = getattr(self, stage)
            accepted = DENOISE_PRECISIONS if stage == "denoise" else PRECISIONS
            if value not in accepted:
                raise InvalidValueError(
                    f"precision.{stage} is {value!r}; accepted: {', '.join(accepted)}"
                )


@dataclass(frozen=True)
class EngineTimings:
    """Milliseconds of the last call; NaN where stages ran as one."""

    vision_ms: float = float("nan")
    prefill_ms: float = float("nan")
    denoise_ms: float = float("nan")
    model_ms: float = float("nan")


@dataclass(frozen=True)
class EngineHealth:
    """What an engine's supervision of itself has found, for diagnostics.

    Attributes:
        values: keys and values to show.
        warning: one sentence if something is wrong, else empty.

    """

    values: Mapping[str, str] = field(default_factory=dict)
    warning: str = ""


class StageClock:
    """Times of the last context, and of the denoise that followed it, in milliseconds.

    `denoise_done` leaves the times of the context alone, so a thread that only makes contexts can
    read them while another one denoises.
    """

    def __init__(self) -> None:
        self._context = (float("nan"), float("nan"))
        self._denoise_ms = float("nan")

    def context_done(self, vision_ms: float, prefill_ms: float) -> None:
        """Vision and prefill have ended; no denoise has followed yet."""
        self._context = (vision_ms, prefill_ms)
        self._denoise_ms = float("nan")

    def denoise_done(self, denoise_ms: float) -> None:
        """All denoise steps have ended."""
        self._denoise_ms = denoise_ms

    @property
    def timings(self) -> EngineTimings:
        """Both halves and their sum."""
        (vision_ms, prefill_ms), denoise_ms = self._context, self._denoise_ms
        return EngineTimings(
            vision_ms, prefill_ms, denoise_ms, vision_ms + prefill_ms + denoise_ms
        )


@dataclass(frozen=True)
class Guidance:
    """Pull of a chunk towards the one before while it is sampled (guided real-time chunking).

    Attributes:
        target: float32 ``[H, A]``, normalized; row 0 is the action at the new observation, zeros
            where the previous chunk has ended.
        weights: float32 ``[H]``, 0 (free) to 1 (tied).
        correction: "identity", "vjp" or "vjp-scaled", see `pi05_ros.model.guidance.guided`.
        most: clip of the gain.

    """

    target: torch.Tensor
    weights: torch.Tensor
    correction: str = "identity"
    most: float = MAX_GUIDANCE


class Engine(Protocol):
    """A pi0.5 ready to run at batch 1 on one device."""

    backend: str
    reason: str
    precision: Precision
    device: torch.device
    horizon: int

    @property
    def timings(self) -> EngineTimings:
        """Of the last call."""

    def context(self, images: Sequence[torch.Tensor] | torch.Tensor, tokens: torch.Tensor) -> Any:
        """Vision and prefill: the KV cache of one observation, opaque to the caller.

        Args:
            images: the valid cameras in slot order: uint8 ``[V, Hc, Wc, 3]`` RGB, or float
                ``[V, 3, S, S]`` in [-1, 1], or a sequence of one such tensor per camera (their
                sizes may differ). Masked cameras are left out, which is exact.
            tokens: int64 ``[n]`` prompt ids without padding.

        """

    def denoise(self, context: Any, noise: torch.Tensor, steps: int = 10) -> torch.Tensor:
        """Flow from noise ``[H, 32]`` float32 to normalized actions ``[H, 32]`` float32."""

    def sample(
        self,
        images: Sequence[torch.Tensor] | torch.Tensor,
        tokens: torch.Tensor,
        noise: torch.Tensor,
        steps: int = 10,
    ) -> torch.Tensor:
        """Run all three stages: ``denoise(context(images, tokens), noise, steps)``."""

    def close(self) -> None:
        """Free device memory; the engine cannot be used afterwards."""


class SteerableEngine(Engine, Protocol):
    """An engine whose chunks can continue each other and whose image tokens can be kept.

    `steering` names the ways that `denoise` has of continuing a chunk: "identity" and "vjp..." by
    guidance, "trained" by frozen actions.
    """

    steering: tuple[str, ...]

    def context(
        self,
        images: Sequence[torch.Tensor] | torch.Tensor,
        tokens: torch.Tensor,
        *,
        camera_keys: Sequence[Hashable] | None = None,
    ) -> Any:
        """As `Engine.context`; a camera whose key is that of the call before is not encoded."""

    def denoise(
        self,
        context: Any,
        noise: torch.Tensor,
        steps: int = 10,
        *,
        guidance: Guidance | None = None,
        frozen: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """As `Engine.denoise`, continuing a chunk.

        Args:
            context: see there.
            noise: see there.
            steps: see there.
            guidance: pull towards the previous chunk.
            frozen: float32 ``[d, A]`` normalized actions that are already decided: the flow keeps
                them, at flow time 0 (training-time RTC, arXiv 2512.05964).

        """
