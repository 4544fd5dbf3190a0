"""The one interface of all backends: `Engine`, and the small values that go in and out of it.

vision   uint8 ``[Hc, Wc, 3]`` or float ``[3, S, S]`` per camera -> image tokens
prefill  image tokens and prompt tokens -> KV cache
denoise  KV cache and noise ``[H, 32]`` -> normalized actions ``[H, 32]``

Callers see two calls: `Engine.prefill` runs vision and prefill, `Engine.denoise` the flow.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch

from pi05_ros.backends.choices import DENOISE_PRECISIONS, PRECISIONS
from pi05_ros.backends.errors import BackendError
from pi05_ros.errors import InvalidValueError
from pi05_ros.model.guidance import MAX_GUIDANCE
from pi05_ros.model.sampler import DENOISE_STEPS

ASKED_FOR = "asked for"
"""`Engine.reason` where a backend was named by the caller."""


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
    """Times of the last prefill, and of the denoise that followed it, in milliseconds.

    `denoise_done` leaves the times of the prefill alone, so a thread that only prefills can read
    them while another one denoises.
    """

    def __init__(self) -> None:
        self._prefill = (float("nan"), float("nan"))
        self._denoise_ms = float("nan")

    def prefill_done(self, vision_ms: float, prefill_ms: float) -> None:
        """Vision and prefill have ended; no denoise has followed yet."""
        self._prefill = (vision_ms, prefill_ms)
        self._denoise_ms = float("nan")

    def denoise_done(self, denoise_ms: float) -> None:
        """All denoise steps have ended."""
        self._denoise_ms = denoise_ms

    @property
    def timings(self) -> EngineTimings:
        """Both halves and their sum."""
        (vision_ms, prefill_ms), denoise_ms = self._prefill, self._denoise_ms
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
        max_gain: clip of the gain.

    """

    target: torch.Tensor
    weights: torch.Tensor
    correction: str = "identity"
    max_gain: float = MAX_GUIDANCE


KVCache: TypeAlias = Any
"""Keys and values of one observation's prefix, opaque to callers.

Every engine has its own form; `pi05_ros.model.KVCache` is that of eager. A KV cache only goes to
`denoise` of the engine whose `prefill` made it.
"""

Images: TypeAlias = Sequence[torch.Tensor] | torch.Tensor
"""The valid cameras in slot order: uint8 ``[V, Hc, Wc, 3]`` RGB, or float ``[V, 3, S, S]`` in
[-1, 1], or a sequence of one such tensor per camera (their sizes may differ)."""


@dataclass(frozen=True)
class Capabilities:
    """Optional abilities of an engine; callers ask before they use one.

    Attributes:
        guidance: corrections that `Engine.denoise` accepts in a `Guidance`.
        frozen: whether it accepts a frozen prefix.
        camera_keys: whether `Engine.prefill` reuses image tokens by camera key.
        overlap: whether `prefill` may run in one thread while another one is in `denoise`. One
            call of each is allowed at a time, and a KV cache stays valid until the second
            prefill after it begins.

    """

    guidance: tuple[str, ...] = ()
    frozen: bool = False
    camera_keys: bool = False
    overlap: bool = False


class Engine(ABC):
    """A pi0.5 ready to run at batch 1 on one device.

    Attributes:
        backend: name, for logs and diagnostics.
        reason: why this backend was chosen.
        precision: arithmetic of each stage, resolved.
        device: where the stages run.
        horizon: action steps H that the engine was prepared for.

    """

    backend: str
    reason: str = ASKED_FOR
    precision: Precision
    device: torch.device
    horizon: int

    @property
    @abstractmethod
    def timings(self) -> EngineTimings:
        """Of the last call."""

    @abstractmethod
    def prefill(
        self,
        images: Images,
        tokens: torch.Tensor,
        *,
        camera_keys: Sequence[Hashable] | None = None,
    ) -> KVCache:
        """Vision and prefill: the KV cache of one observation.

        Args:
            images: see `Images`. Masked cameras are left out, which is exact.
            tokens: int64 ``[n]`` prompt ids without padding.
            camera_keys: one per image. A camera whose key equals that of the call before is not
                encoded again; None as a key, or in place of the sequence, always encodes.

        Raises:
            BackendError: an image, the tokens or the keys are not as accepted, or camera keys
                for an engine without that ability.

        """

    @abstractmethod
    def denoise(
        self,
        cache: KVCache,
        noise: torch.Tensor,
        *,
        steps: int = DENOISE_STEPS,
        guidance: Guidance | None = None,
        frozen: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Flow from noise to normalized actions, float32 ``[H, 32]``.

        Args:
            cache: from `prefill`; may be used several times.
            noise: float32 ``[H, 32]``.
            steps: Euler steps.
            guidance: pull towards the previous chunk.
            frozen: float32 ``[d, 32]`` normalized actions that are kept as they are: the flow
                sees them at flow time 0 (training-time RTC, arXiv 2512.05964).

        Raises:
            BackendError: shapes that do not fit, or an ability that the engine does not have.

        """

    def sample(
        self, images: Images, tokens: torch.Tensor, noise: torch.Tensor, steps: int = DENOISE_STEPS
    ) -> torch.Tensor:
        """Run all three stages: ``denoise(prefill(images, tokens), noise, steps=steps)``."""
        return self.denoise(self.prefill(images, tokens), noise, steps=steps)

    @property
    def capabilities(self) -> Capabilities:
        """Optional abilities; none unless an engine says so."""
        return Capabilities()

    def holds(self, cache: KVCache) -> bool:
        """Whether a KV cache of this engine can still be used; a later one may have its memory."""
        return True

    def health(self) -> EngineHealth:
        """What the engine found out about itself; from any thread, waits for nothing."""
        return EngineHealth()

    def warm_up(self, inference: Callable[[], object]) -> None:
        """Run an inference as often as it takes until none of the following is slow."""
        inference()

    @abstractmethod
    def close(self) -> None:
        """Free device memory; the engine cannot be used afterwards."""


def require_plain(
    backend: str,
    camera_keys: Sequence[Hashable] | None = None,
    guidance: Guidance | None = None,
    frozen: torch.Tensor | None = None,
) -> None:
    """Raise BackendError if a call asks for an ability, of an engine that has none of them."""
    asked = {
        "camera_keys": camera_keys is not None,
        "guidance": guidance is not None,
        "frozen": frozen is not None,
    }
    for name, given in asked.items():
        if given:
            raise BackendError(
                f"backend {backend!r} does not have {name}; backends 'eager' and 'cuda' do"
            )
