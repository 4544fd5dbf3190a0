"""Camera frames to patch rows: Pillow's resize, normalization and im2col."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from pi05_ros.backends.cuda.stages.stage import Stage
from pi05_ros.backends.cuda.triton import preprocess
from pi05_ros.backends.resize import filter_weights, fitted_size


@dataclass(frozen=True)
class ResizeTables:
    """Filter of one frame size: first source index and fixed-point weights per output pixel."""

    new_height: int
    new_width: int
    x_first: Tensor
    x_weight: Tensor
    y_first: Tensor
    y_weight: Tensor
    scratch: Tensor  # uint8 [Hc, new_width, 3]

    @classmethod
    def build(cls, height: int, width: int, size: int, device: torch.device) -> ResizeTables:
        """Tables for frames ``[height, width, 3]``."""
        new_height, new_width = fitted_size(height, width, size)
        tensors: list[Tensor] = []
        for source, target in ((width, new_width), (height, new_height)):
            index, weight = filter_weights(source, target)
            tensors.append(torch.from_numpy(index[:, 0].astype("int32")).to(device))
            tensors.append(torch.from_numpy(weight).to(device))
        scratch = torch.empty(height, new_width, 3, dtype=torch.uint8, device=device)
        x_first, x_weight, y_first, y_weight = tensors
        return cls(new_height, new_width, x_first, x_weight, y_first, y_weight, scratch)


class PatchKernels(Stage):
    """What is in front of the vision tower, on static buffers."""

    def frame_to_patches(self, frame: Tensor, view: int, tables: ResizeTables) -> None:
        """uint8 ``[Hc, Wc, 3]`` -> the patch rows of camera `view`."""
        config = self.weights.config.vision
        size, patch = config.image_size, config.patch_size
        height, width = frame.shape[:2]
        out = self.buffers.patches[view * config.tokens :]
        preprocess.resize_rows[(height, triton.cdiv(tables.new_width * 3, 256))](
            frame,
            tables.x_first,
            tables.x_weight,
            tables.scratch,
            width,
            tables.new_width,
            TAPS=tables.x_weight.shape[1],
            BLOCK=256,
        )
        preprocess.resize_columns_to_patches[(size,)](
            tables.scratch,
            tables.y_first,
            tables.y_weight,
            out,
            height,
            tables.new_width,
            tables.new_height,
            (size - tables.new_height) // 2,
            (size - tables.new_width) // 2,
            SIZE=size,
            PATCH=patch,
            GRID=size // patch,
            ROW=out.shape[1],
            TAPS=tables.y_weight.shape[1],
            BLOCK=triton.next_power_of_2(size * 3),
        )

    def pixels_to_patches(self, pixels: Tensor, view: int) -> None:
        """float32 ``[V, 3, S, S]`` in [-1, 1] -> patch rows of cameras from `view` on."""
        config = self.weights.config.vision
        size, patch = config.image_size, config.patch_size
        out = self.buffers.patches[view * config.tokens :]
        preprocess.pixels_to_patches[(size, pixels.shape[0] * 3)](
            pixels,
            out,
            SIZE=size,
            PATCH=patch,
            GRID=size // patch,
            ROW=out.shape[1],
            BLOCK=triton.next_power_of_2(size),
        )
