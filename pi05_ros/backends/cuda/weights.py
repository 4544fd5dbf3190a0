"""Weights of a `Pi05` in the form the kernels want; the plain model can be freed afterwards.

Changes, all exact up to rounding:

- q, k, v are one matrix per layer, as are gate and up.
- Prefix norms: the factor (1 + w) is folded into the columns of the matrix behind the norm.
- Expert q, k: the two halves of a RoPE pair are neighbors (rows 0, 128, 1, 129, ... of a head);
  expert gate and up rows alternate. A tile of neighboring columns then holds complete pairs.
- Patch embedding: ``[D, 3 * 14 * 14]`` padded to a multiple of 16 columns, FP16 (pixels are k/255:
  three more bits than BF16, free).
- FP8: e4m3 with one scale per output channel, amax / 448. Under "fp8-w8a16" only the weights are
  e4m3, their inputs stay 16-bit.
- The last prefix layer keeps only k and v; its attention and MLP feed nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from pi05_ros.backends.cuda.packing import pack_weight
from pi05_ros.backends.engine import Precision
from pi05_ros.backends.identity import Fingerprint
from pi05_ros.model import Pi05, Pi05Config

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0
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
    image: bool = False  # weight is kept as hopper/packing.py packs it

    @property
    def fp8(self) -> bool:
        """Whether the input is e4m3, as the weight is then too."""
        return self.weight.dtype == FP8 and not self.wide_input

    @property
    def outputs(self) -> int:
        """Columns of the result (N)."""
        return self.weight.shape[0] * (self.weight.shape[2] if self.image else 1)


@dataclass
class PackedVisionLayer:
    """SigLIP block; norms ``(weight, bias)`` float32."""

    norm1: tuple[Tensor, Tensor]
    qkv: Linear
    out: Linear
    norm2: tuple[Tensor, Tensor]
    fc1: Linear
    fc2: Linear


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
    quantized: list[bool]  # per site: whether its input is e4m3, so that its scale matters
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


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize ``[N, K]`` to e4m3 with one scale per row: ``weight ~ q * scale[:, None]``."""
    w = weight.float()
    scale = (w.abs().amax(dim=1) / FP8_MAX).clamp_min(1e-12)
    return (w / scale[:, None]).clamp(-FP8_MAX, FP8_MAX).to(FP8), scale


def rope_pairs(rows: Tensor, head_dim: int) -> Tensor:
    """Reorder ``[heads * head_dim, K]`` so that i and i + head_dim / 2 are neighbors."""
    heads = rows.shape[0] // head_dim
    paired = rows.reshape(heads, 2, head_dim // 2, -1).transpose(1, 2)
    return paired.reshape(rows.shape)


def alternate(first: Tensor, second: Tensor) -> Tensor:
    """Rows of two matrices alternating: first[0], second[0], first[1], ..."""
    return torch.stack((first, second), dim=1).flatten(0, 1)


class _Packer:
    def __init__(self, release: bool) -> None:
        self.sites: list[str] = []
        self.quantized: list[bool] = []
        self.release = release
        self.fingerprint = Fingerprint()

    def linear(
        self,
        site: str,
        kind: str,
        weight: Tensor,
        bias: Tensor | None = None,
        source: tuple[Tensor, ...] = (),
    ) -> Linear:
        """Pack one matrix; `source`: what the fingerprint takes where the layout may differ."""
        self.sites.append(site)
        self.quantized.append(kind == "fp8")
        for part in source or (weight,):
            self.fingerprint.add(site, part)
        index = len(self.sites) - 1
        bias = None if bias is None else bias.float()
        if kind in ("fp8", "fp8-w8a16"):
            q, scale = quantize(weight)
            return Linear(q.contiguous(), scale, bias, index, wide_input=kind != "fp8")
        if bias is not None:
            bias = bias.to(half(weight.device))
        return Linear(weight.to(half(weight.device), copy=True).contiguous(), None, bias, index)

    def drop(self, module: nn.Module) -> None:
        """Free a packed module's parameters (the caller gave the model away)."""
        if self.release:
            for parameter in module.parameters():
                parameter.data = parameter.data.new_empty(0)


def pack(
    model: Pi05,
    precision: Precision,
    release: bool = False,
    fused_gate_up: bool = False,
    prefix_image: bool = False,
    expert_image: bool = False,
) -> Weights:
    """Pack a model on its device; `release` empties its modules on the way (half the peak).

    With `fused_gate_up` the prefix gate and up rows alternate, as `gemm.geglu_gemm` wants them.
    With `prefix_image` (which wants `fused_gate_up`) the FP8 weights of the prefix MLP, with
    `expert_image` those of the expert have the layout of the Hopper kernels.
    """
    packer = _Packer(release)
    with torch.no_grad():
        vision, patch, positions, post_norm, projector = _vision(model, precision.vision, packer)
        prefix = _prefix(model, precision.prefill, packer, fused_gate_up, prefix_image)
        expert = _expert(model, precision.denoise, packer, expert_image)
        norms: list[nn.Linear] = []
        blocks: Any = model.expert.layers
        for layer in blocks:
            norms += [layer.input_layernorm.dense, layer.post_attention_layernorm.dense]
        norms.append(model.expert.norm.dense)
        weights = Weights(
            config=model.config,
            precision=precision,
            sites=packer.sites,
            quantized=packer.quantized,
            patch=patch,
            positions=positions,
            vision=vision,
            post_norm=post_norm,
            projector=projector,
            embedding=model.vlm.embed_tokens.weight.detach().to(half(model.device)).contiguous(),
            prefix=prefix,
            expert=expert,
            mod_weight=torch.stack([norm.weight.float() for norm in norms]),
            mod_bias=torch.stack([norm.bias.float() for norm in norms]),
            time_mlp=(
                model.time_mlp_in.weight.float().clone(),
                model.time_mlp_in.bias.float().clone(),
                model.time_mlp_out.weight.float().clone(),
                model.time_mlp_out.bias.float().clone(),
            ),
            action_in=(
                model.action_in_proj.weight.float().t().contiguous(),
                model.action_in_proj.bias.float().clone(),
            ),
            action_out=(
                model.action_out_proj.weight.float().contiguous().clone(),
                model.action_out_proj.bias.float().clone(),
            ),
            fused_gate_up=fused_gate_up,
            prefix_image=prefix_image,
            expert_image=expert_image,
            fingerprint=packer.fingerprint.hexdigest(),
        )
        for norm in norms:
            packer.drop(norm)
    return weights


def _pair(norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    return norm.weight.detach().float().clone(), norm.bias.detach().float().clone()


def _vision(
    model: Pi05, kind: str, packer: _Packer
) -> tuple[list[PackedVisionLayer], Linear, Tensor, tuple[Tensor, Tensor], Linear]:
    tower = model.vision
    flat = tower.patch_embedding.weight.detach().flatten(1)
    padded = flat.new_zeros(flat.shape[0], patch_columns(model.config)).float()
    padded[:, : flat.shape[1]] = flat
    bias = tower.patch_embedding.bias
    assert bias is not None
    patch = Linear(padded.to(PATCH_DTYPE), None, bias.detach().to(PATCH_DTYPE), -1)
    layers = []
    blocks: Any = tower.layers
    for i, layer in enumerate(blocks):
        attention, mlp = layer.self_attn, layer.mlp
        three = (attention.q_proj, attention.k_proj, attention.v_proj)

        def make(name: str, w: Tensor, b: Tensor, i: int = i) -> Linear:
            return packer.linear(f"vision.{i}.{name}", kind, w, b)

        layers.append(
            PackedVisionLayer(
                norm1=_pair(layer.layer_norm1),
                qkv=make(
                    "qkv",
                    torch.cat([p.weight for p in three]),
                    torch.cat([p.bias for p in three]),
                ),
                out=make("out", attention.out_proj.weight, attention.out_proj.bias),
                norm2=_pair(layer.layer_norm2),
                fc1=make("fc1", mlp.fc1.weight, mlp.fc1.bias),
                fc2=make("fc2", mlp.fc2.weight, mlp.fc2.bias),
            )
        )
        packer.drop(layer)
    projector = packer.linear(
        "vision.projector", "bf16", model.projector.weight, model.projector.bias
    )
    positions = tower.position_embedding.weight.detach().float().clone()
    return layers, patch, positions, _pair(tower.post_layernorm), projector


def _prefix(
    model: Pi05, kind: str, packer: _Packer, fused: bool, image: bool
) -> list[PackedPrefixLayer]:
    layers = []
    last = model.config.vlm.depth - 1
    blocks: Any = model.vlm.layers
    for i, layer in enumerate(blocks):
        attention, mlp = layer.self_attn, layer.mlp
        norm1 = 1.0 + layer.input_layernorm.weight.float()
        norm2 = 1.0 + layer.post_attention_layernorm.weight.float()
        parts = [attention.q_proj, attention.k_proj, attention.v_proj]
        qkv = torch.cat([p.weight for p in (parts if i < last else parts[1:])]).float() * norm1
        packed = PackedPrefixLayer(qkv=packer.linear(f"prefill.{i}.qkv", kind, qkv))
        del qkv
        if i < last:
            packed.out = packer.linear(f"prefill.{i}.out", kind, attention.o_proj.weight)
            pair = (mlp.gate_proj.weight, mlp.up_proj.weight)
            both = (alternate(*pair) if fused else torch.cat(pair)).float() * norm2
            name, source = f"prefill.{i}.gate_up", (*pair, norm2)
            packed.gate_up = packer.linear(name, kind, both, source=source)
            del both
            packed.down = packer.linear(f"prefill.{i}.down", kind, mlp.down_proj.weight)
            if image:
                packed.gate_up = _as_image(packed.gate_up)
                packed.down = _as_image(packed.down)
        layers.append(packed)
        packer.drop(layer)
    return layers


def _expert(model: Pi05, kind: str, packer: _Packer, image: bool) -> list[PackedExpertLayer]:
    layers = []
    head_dim = model.config.expert.head_dim
    blocks: Any = model.expert.layers
    for i, layer in enumerate(blocks):
        attention, mlp = layer.self_attn, layer.mlp
        three = (attention.q_proj, attention.k_proj, attention.v_proj)
        qkv = rope_pairs(torch.cat([p.weight for p in three]), head_dim)

        def make(name: str, w: Tensor, i: int = i) -> Linear:
            return packer.linear(f"denoise.{i}.{name}", kind, w)

        packed = PackedExpertLayer(
            qkv=make("qkv", qkv),
            out=make("out", attention.o_proj.weight),
            gate_up=make("gate_up", alternate(mlp.gate_proj.weight, mlp.up_proj.weight)),
            down=make("down", mlp.down_proj.weight),
        )
        layers.append(_as_images(packed) if image else packed)
        packer.drop(attention)
        packer.drop(mlp)
    return layers


def _as_image(linear: Linear) -> Linear:
    return replace(linear, weight=pack_weight(linear.weight), image=True)


def _as_images(layer: PackedExpertLayer) -> PackedExpertLayer:
    """Weights in the layout of the Hopper kernels, in one piece in the order of their use."""
    linears = (layer.qkv, layer.out, layer.gate_up, layer.down)
    images = [pack_weight(linear.weight) for linear in linears]
    piece = torch.cat([image.view(torch.uint8).flatten() for image in images])
    parts = piece.split([image.numel() for image in images])
    return PackedExpertLayer(
        *(
            replace(linear, weight=part.view(FP8).view(image.shape), image=True)
            for linear, part, image in zip(linears, parts, images, strict=True)
        )
    )


def patch_columns(config: Pi05Config) -> int:
    """Columns of the patch matrix: 3 * patch^2 rounded up to 16 (588 -> 592)."""
    return -(-3 * config.vision.patch_size**2 // 16) * 16
