"""Weights in the form the kernels want (`packing.pack` makes them), and how they are rounded."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pi05_ros.backends.engine import Precision
from pi05_ros.backends.quantization.fake_quant import LARGEST
from pi05_ros.backends.quantization.fake_quant import quantize as quantize_with
from pi05_ros.model import Pi05Config

FP8 = torch.float8_e4m3fn
CODES = {"fp8": FP8, "int8": torch.int8}
"""Precisions whose GEMMs take 8-bit weights and inputs. With "-w8a16" behind it, weights alone."""
PATCH_DTYPE = torch.float16


def half(device: torch.device) -> torch.dtype:
    """The 16-bit type: BF16; FP32 under Triton's CPU interpreter, which has no BF16 products."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


@dataclass
class Linear:
    """One GEMM: weight ``[N, K]``, scale per row ``[N]`` (None in BF16), bias, input site."""

    weight: Tensor
    scale: Tensor | None
    bias: Tensor | None
    site: int
    wide_input: bool = False  # W8A16
    image: bool = False  # weight is kept as packing.py packs it,
    paired: bool = False  # with its pairs of gate and up rows in the order of `pack_pairs`

    @property
    def coded(self) -> bool:
        """Whether the input has 8 bits (e4m3 or int8), as the weight then has too."""
        return self.weight.dtype in CODES.values() and not self.wide_input

    @property
    def outputs(self) -> int:
        """Columns of the result (N)."""
        return self.weight.shape[0] * (self.weight.shape[2] if self.image else 1)


@dataclass
class PackedVisionLayer:
    """SigLIP block; norms ``(weight, bias)`` float32.

    `fc1_affine` is the table of `fold_norm` where the second norm is folded into fc1.
    """

    norm1: tuple[Tensor, Tensor]
    qkv: Linear
    out: Linear
    norm2: tuple[Tensor, Tensor]
    fc1: Linear
    fc2: Linear
    fc1_affine: Tensor | None = None  # float32 [F, 2]


@dataclass
class PackedPrefixLayer:
    """Gemma block of the prefix; the last one has only `qkv` (k and v rows)."""

    qkv: Linear
    out: Linear | None = None
    gate_up: Linear | None = None
    down: Linear | None = None


@dataclass
class PackedExpertLayer:
    """Gemma block of the expert; its norms live in the modulation tables."""

    qkv: Linear
    out: Linear
    gate_up: Linear
    down: Linear


@dataclass
class Weights:
    """Everything the engine keeps on the device."""

    config: Pi05Config
    precision: Precision
    sites: list[str]
    inputs: list[str]  # per site: "fp8" or "int8" where its input has 8 bits, so that its scale
    # matters; else ""
    patch: Linear
    positions: Tensor  # float32 [P, D]
    vision: list[PackedVisionLayer]
    post_norm: tuple[Tensor, Tensor]
    projector: Linear
    embedding: Tensor  # bf16 [vocab, D]
    prefix: list[PackedPrefixLayer]
    expert: list[PackedExpertLayer]
    mod_weight: Tensor  # float32 [2 L + 1, 3 D, D]
    mod_bias: Tensor  # float32 [2 L + 1, 3 D]
    time_mlp: tuple[Tensor, Tensor, Tensor, Tensor]  # in weight, in bias, out weight, out bias
    action_in: tuple[Tensor, Tensor]  # float32 [A, D] (transposed), [D]
    action_out: tuple[Tensor, Tensor]  # float32 [A, D], [A]
    fused_gate_up: bool  # prefix gate and up rows alternate
    prefix_image: bool  # gate_up and down of the prefix have the layout of hopper/packing.py
    expert_image: bool  # the expert's weights have the layout of hopper/packing.py
    fingerprint: str

    def bytes(self) -> int:
        """Device memory of all weights."""
        seen: dict[int, int] = {}

        def visit(value: object) -> None:
            if isinstance(value, Tensor):
                seen[value.data_ptr()] = value.numel() * value.element_size()
            elif isinstance(value, list | tuple):
                for item in value:
                    visit(item)
            elif hasattr(value, "__dataclass_fields__") and not isinstance(value, Pi05Config):
                for name in value.__dataclass_fields__:
                    visit(getattr(value, name))

        visit(self)
        return sum(seen.values())


def input_dtype(precision: str, wide: torch.dtype) -> torch.dtype:
    """Type of the inputs of a stage's GEMMs: 8 bits, or `wide` under BF16 and W8A16."""
    return CODES.get(precision, wide)


def quantize(weight: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """Quantize ``[N, K]`` to codes of `kind`, a scale per row: ``weight ~ q * scale[:, None]``."""
    w = weight.float()
    scale = (w.abs().amax(dim=1) / LARGEST[kind]).clamp_min(1e-12)
    return quantize_with(w, scale[:, None], kind), scale


def fold_norm(
    weight: Tensor, bias: Tensor, norm: tuple[Tensor, Tensor], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """``[N, K]`` with the LayerNorm in front folded in, and its affine table, float32 ``[N, 2]``.

    ``LN(x) @ weight.T + bias = rstd * (x @ folded.T - mean * c) + b`` with a row ``(c, b)`` of the
    table for each output: c is the sum of the folded weights as rounded to `dtype`.
    """
    factor, shift = norm
    folded = (weight.float() * factor.float()).to(dtype)
    rest = bias.double() + weight.double() @ shift.double()
    return folded, torch.stack((folded.double().sum(1), rest), dim=1).float()


def rope_pairs(rows: Tensor, head_dim: int) -> Tensor:
    """Reorder ``[heads * head_dim, K]`` so that i and i + head_dim / 2 are neighbors."""
    heads = rows.shape[0] // head_dim
    paired = rows.reshape(heads, 2, head_dim // 2, -1).transpose(1, 2)
    return paired.reshape(rows.shape)


def alternate(first: Tensor, second: Tensor) -> Tensor:
    """Rows of two matrices alternating: first[0], second[0], first[1], ..."""
    return torch.stack((first, second), dim=1).flatten(0, 1)


def patch_columns(config: Pi05Config) -> int:
    """Columns of the patch matrix: 3 * patch^2 rounded up to 16 (588 -> 592)."""
    return -(-3 * config.vision.patch_size**2 // 16) * 16
