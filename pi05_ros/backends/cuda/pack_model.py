"""Pack a `Pi05` into `Weights`; the plain model can be freed afterwards.

Changes, all exact up to rounding:

- q, k, v are one matrix per layer, as are gate and up.
- Prefix norms: the factor (1 + w) is folded into the columns of the matrix behind the norm.
- Norm of vision in front of fc1, with `fold_norms`: factor and shift are in fc1, its own are then
  1 and 0, so kernels that know nothing of it compute the same.
- q, k of the expert, and of the prefix on Hopper: the two halves of a RoPE pair are neighbors
  (rows 0, 128, 1, 129, ... of a head); expert gate and up rows alternate. A tile of neighboring
  columns then holds complete pairs.
- Patch embedding: ``[D, 3 * 14 * 14]`` padded to a multiple of 16 columns, FP16 (pixels are k/255:
  three more bits than BF16, free).
- FP8 and INT8: one scale per output channel, amax / 448 or / 127. Under "-w8a16" only the weights
  have 8 bits, their inputs stay 16-bit.
- The last prefix layer keeps only k and v; its attention and MLP feed nothing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pi05_ros.backends.cuda.packing import pack_pairs, pack_weight
from pi05_ros.backends.cuda.weights import (
    CODES,
    PATCH_DTYPE,
    Linear,
    PackedExpertLayer,
    PackedPrefixLayer,
    PackedVisionLayer,
    Weights,
    alternate,
    fold_norm,
    half,
    patch_columns,
    quantize,
    rope_pairs,
)
from pi05_ros.backends.engine import Precision
from pi05_ros.backends.identity import Fingerprint
from pi05_ros.model import Pi05


class _Packer:
    def __init__(self, release: bool) -> None:
        self.sites: list[str] = []
        self.inputs: list[str] = []
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
        self.inputs.append(kind if kind in CODES else "")
        for part in source or (weight,):
            self.fingerprint.add(site, part)
        index = len(self.sites) - 1
        bias = None if bias is None else bias.float()
        word = kind.removesuffix("-w8a16")
        if word in CODES:
            q, scale = quantize(weight, word)
            return Linear(q.contiguous(), scale, bias, index, wide_input=kind != word)
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
    projection_image: bool = False,
    fold_norms: bool = False,
) -> Weights:
    """Pack a model on its device; `release` empties its modules on the way (half the peak).

    With `fused_gate_up` the prefix gate and up rows alternate, as `gemm.geglu_gemm` wants them.
    With `prefix_image` (which wants `fused_gate_up`) the FP8 weights of the prefix MLP, with
    `projection_image` also those around its attention, with `expert_image` those of the expert
    have the layout of the Hopper kernels; those of the expert may be in BF16 too. `fold_norms` is
    for vision in BF16 alone.
    """
    packer = _Packer(release)
    with torch.no_grad():
        vision, patch, positions, post_norm, projector = _vision(
            model, precision.vision, packer, fold_norms
        )
        prefix = _prefix(
            model, precision.prefill, packer, fused_gate_up, prefix_image, projection_image
        )
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
            inputs=packer.inputs,
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


def _folded(
    packer: _Packer, site: str, weight: Tensor, bias: Tensor, norm: tuple[Tensor, Tensor]
) -> tuple[tuple[Tensor, Tensor], Linear, Tensor]:
    """A norm that does nothing more, the BF16 matrix behind it, and the table of `fold_norm`."""
    folded, affine = fold_norm(weight, bias, norm, half(weight.device))
    linear = packer.linear(site, "bf16", folded, affine[:, 1], source=(weight,))
    return (torch.ones_like(norm[0]), torch.zeros_like(norm[1])), linear, affine


def _vision(
    model: Pi05, kind: str, packer: _Packer, fold: bool
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

        norm1, norm2 = _pair(layer.layer_norm1), _pair(layer.layer_norm2)
        qkv = make("qkv", torch.cat([p.weight for p in three]), torch.cat([p.bias for p in three]))
        out = make("out", attention.out_proj.weight, attention.out_proj.bias)
        if fold:
            site = f"vision.{i}.fc1"
            norm2, fc1, fc1_affine = _folded(packer, site, mlp.fc1.weight, mlp.fc1.bias, norm2)
        else:
            fc1, fc1_affine = make("fc1", mlp.fc1.weight, mlp.fc1.bias), None
        fc2 = make("fc2", mlp.fc2.weight, mlp.fc2.bias)
        layers.append(PackedVisionLayer(norm1, qkv, out, norm2, fc1, fc2, fc1_affine))
        packer.drop(layer)
    projector = packer.linear(
        "vision.projector", "bf16", model.projector.weight, model.projector.bias
    )
    positions = tower.position_embedding.weight.detach().float().clone()
    return layers, patch, positions, _pair(tower.post_layernorm), projector


def _prefix(
    model: Pi05, kind: str, packer: _Packer, fused: bool, image: bool, projections: bool
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
        rows = rope_pairs(qkv, model.config.vlm.head_dim) if projections else qkv
        packed = PackedPrefixLayer(
            qkv=packer.linear(f"prefill.{i}.qkv", kind, rows, source=(qkv,))
        )
        del qkv, rows
        if projections:
            packed.qkv = _as_image(packed.qkv)
        if i < last:
            packed.out = packer.linear(f"prefill.{i}.out", kind, attention.o_proj.weight)
            pair = (mlp.gate_proj.weight, mlp.up_proj.weight)
            both = (alternate(*pair) if fused else torch.cat(pair)).float() * norm2
            name, source = f"prefill.{i}.gate_up", (*pair, norm2)
            packed.gate_up = packer.linear(name, kind, both, source=source)
            del both
            packed.down = packer.linear(f"prefill.{i}.down", kind, mlp.down_proj.weight)
            if image:
                pairs = pack_pairs(packed.gate_up.weight)
                packed.gate_up = replace(packed.gate_up, weight=pairs, image=True, paired=True)
                packed.down = _as_image(packed.down)
            if projections:
                packed.out = _as_image(packed.out)
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
    parts = piece.split([image.nbytes for image in images])
    return PackedExpertLayer(
        *(
            replace(linear, weight=part.view(image.dtype).view(image.shape), image=True)
            for linear, part, image in zip(linears, parts, images, strict=True)
        )
    )
