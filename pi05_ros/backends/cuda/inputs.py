"""Bring one observation into the static buffers: frames, prompt, noise.

Frames on the host go through a pinned double buffer: the copy of one call may still be under way
while the next call fills the other half. Frames that lie in pinned memory already are read from
there, and waited for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pi05_ros.backends.cuda.buffers import ACTION_ROWS, Buffers
from pi05_ros.backends.errors import BackendError

MAX_VIEWS = 3
Kind = tuple[str, int, int]  # ("frame", Hc, Wc) uint8 or ("pixels", S, S) float


class _Pinned:
    """Two pinned host buffers in turn, each guarded by the event of its last copy."""

    def __init__(self, like: Tensor) -> None:
        self.buffers = [torch.empty(like.shape, dtype=like.dtype, pin_memory=True) for _ in "ab"]
        self.events = [torch.cuda.Event() for _ in "ab"]
        self.turn = 0

    def send(self, source: Tensor, target: Tensor) -> None:
        self.turn ^= 1
        self.events[self.turn].synchronize()
        self.buffers[self.turn].copy_(source)
        target.copy_(self.buffers[self.turn], non_blocking=True)
        self.events[self.turn].record()


@dataclass(frozen=True)
class View:
    """One camera of a call: what kind of image, and its tensor."""

    kind: Kind
    tensor: Tensor


class FrameInputs:
    """Static frame buffers by camera and image size, filled before a graph runs."""

    def __init__(self, device: torch.device, size: int) -> None:
        self.device = device
        self.size = size
        self._frames: dict[tuple[int, Kind], Tensor] = {}
        self._pinned: dict[tuple[int, Kind], _Pinned] = {}
        self._borrowed: torch.cuda.Event | None = None  # the last copy from a caller's memory

    def views(self, images: Sequence[Tensor] | Tensor, most: int) -> list[View]:
        """Split and check the images of a call.

        Raises:
            BackendError: an image is neither uint8 ``[H, W, 3]`` nor float ``[3, S, S]``, or
                there are more than `most`.

        """
        views = []
        for image in images:
            view = image[0] if image.ndim == 4 and image.shape[0] == 1 else image
            if view.dtype == torch.uint8 and view.ndim == 3 and view.shape[-1] == 3:
                kind = ("frame", view.shape[0], view.shape[1])
            elif view.is_floating_point() and tuple(view.shape) == (3, self.size, self.size):
                kind = ("pixels", self.size, self.size)
            else:
                raise BackendError(
                    f"image is {view.dtype} {list(view.shape)}; accepted: uint8 [H, W, 3] or "
                    f"float [3, {self.size}, {self.size}] in [-1, 1]"
                )
            if 0 in view.shape:
                raise BackendError(f"image is empty: {list(view.shape)}")
            views.append(View(kind, view))
        if len(views) > most:
            raise BackendError(f"{len(views)} images; this engine was made for up to {most}")
        return views

    def buffer(self, camera: int, kind: Kind) -> Tensor:
        """Device buffer of one camera for one kind of image."""
        key = (camera, kind)
        if key not in self._frames:
            shape: tuple[int, ...] = (kind[1], kind[2], 3)
            dtype = torch.uint8
            if kind[0] == "pixels":
                shape, dtype = (1, 3, self.size, self.size), torch.float32
            self._frames[key] = torch.zeros(shape, dtype=dtype, device=self.device)
        return self._frames[key]

    def load(self, camera: int, view: View) -> None:
        """Copy one image into its buffer, asynchronously: until `give_back` it must not change."""
        target = self.buffer(camera, view.kind)
        source = view.tensor
        if source.device.type == "cpu" and self.device.type == "cuda":
            if source.dtype == target.dtype and source.is_pinned():
                target.copy_(source.reshape(target.shape), non_blocking=True)
                self._borrowed = self._borrowed or torch.cuda.Event()
                self._borrowed.record()
                return
            key = (camera, view.kind)
            if key not in self._pinned:
                self._pinned[key] = _Pinned(target)
            self._pinned[key].send(source.reshape(target.shape), target)
        else:
            target.copy_(source.reshape(target.shape), non_blocking=True)

    def give_back(self) -> None:
        """Wait until no image of a caller is read any more: its memory may be used again."""
        if self._borrowed is not None:
            self._borrowed.synchronize()


class PromptAndNoise:
    """Brings prompt ids and flow noise into the static buffers.

    Attributes:
        buckets: prompt lengths that graphs are captured for, besides the longest.

    """

    buckets: tuple[int, ...] = (32, 64, 128, 200)

    def __init__(self, buffers: Buffers, vocab: int, most: int) -> None:
        self._buffers = buffers
        self._vocab = vocab
        self._most = most
        self._length = [-1] * len(buffers.slots)

    def load_prompt(self, tokens: Tensor, views: int, slot: int) -> tuple[int, int]:
        """Copy the ids and set the slot's length; returns their number and bucket.

        Raises:
            BackendError: see `check_tokens`; nothing has been written then.

        """
        b = self._buffers
        n = check_tokens(tokens, self._most, self._vocab)
        bucket = min(next((size for size in self.buckets if n <= size), self._most), self._most)
        b.prompt[:n].copy_(tokens, non_blocking=True)
        length = views * b.tokens + n
        if self._length[slot] != length:
            b.slots[slot].length.fill_(length)
            self._length[slot] = length
        return n, bucket

    def load_noise(self, noise: Tensor | None, seed: int | None, horizon: int) -> int:
        """Copy noise ``[H, A]``, or the seed that it is drawn from for `horizon` rows; returns H.

        Raises:
            BackendError: neither is given, or see `check_noise`.

        """
        b = self._buffers
        if noise is None:
            if seed is None:
                raise BackendError("give noise or a seed")
            b.seed.fill_(seed)
            return horizon
        horizon = check_noise(noise, b.noise.shape[1], ACTION_ROWS)
        b.noise[:horizon].copy_(noise, non_blocking=True)
        return horizon


def check_range(name: str, value: int, least: int, most: int | None = None) -> None:
    """Raise BackendError unless an option of the engine is within its range."""
    if value < least or (most is not None and value > most):
        accepted = f"{least} or more" if most is None else f"{least} to {most}"
        raise BackendError(f"{name} is {value}; accepted: {accepted}")


def check_sizes(
    horizon: int, views: int, max_prompt_tokens: int, slots: int, monitor_every: int
) -> None:
    """Raise BackendError unless an engine can be made for these sizes."""
    check_range("horizon", horizon, 1, ACTION_ROWS)
    check_range("views", views, 0, MAX_VIEWS)
    check_range("max_prompt_tokens", max_prompt_tokens, 1)
    check_range("slots", slots, 1)
    check_range("monitor_every", monitor_every, 0)


def check_tokens(tokens: Tensor, most: int, vocab: int) -> int:
    """Number of prompt tokens.

    Raises:
        BackendError: not integers ``[n]``, n out of range, or (seen on the host only) an id
            outside the vocabulary.

    """
    if tokens.ndim != 1 or tokens.dtype not in (torch.int64, torch.int32):
        raise BackendError(f"tokens are {tokens.dtype} {list(tokens.shape)}; accepted: int64 [n]")
    n = tokens.shape[0]
    if not 1 <= n <= most:
        raise BackendError(f"{n} prompt tokens; accepted: 1 to {most}")
    if tokens.device.type == "cpu" and not (0 <= int(tokens.min()) <= int(tokens.max()) < vocab):
        raise BackendError(f"a prompt token is outside 0 to {vocab - 1}")
    return n


def check_noise(noise: Tensor, action_dim: int, most: int) -> int:
    """Horizon of a noise ``[H, A]``.

    Raises:
        BackendError: another shape or type, or H out of range.

    """
    if noise.ndim != 2 or noise.shape[1] != action_dim or not noise.is_floating_point():
        raise BackendError(
            f"noise is {noise.dtype} {list(noise.shape)}; accepted: float [H, {action_dim}]"
        )
    if not 1 <= noise.shape[0] <= most:
        raise BackendError(f"noise has horizon {noise.shape[0]}; accepted: 1 to {most}")
    return noise.shape[0]


def check_steps(steps: int, most: int) -> None:
    """Raise BackendError unless `steps` is a whole number from 1 to `most`."""
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= most:
        raise BackendError(f"steps is {steps!r}; accepted: 1 to {most}")
