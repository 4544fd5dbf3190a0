"""The tensors of an openpi pi0.5 weight file: names, shapes, and our names for them.

openpi's PyTorch file is the common form of all layouts; LeRobot's is the same under a `model.`
prefix. For the published model it has 812 tensors with 3,616,757,520 parameters. All of them are
parameters of `Pi05` under the name map below, except the expert's `lm_head`, which no inference
and no training step ever reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pi05_ros.model.config import GemmaConfig, Pi05Config, VisionConfig

PALIGEMMA = "paligemma_with_expert.paligemma."
VISION_TOWER = PALIGEMMA + "model.vision_tower."
VISION = VISION_TOWER + "vision_model."  # transformers 5.23 leaves this level out
PROJECTOR = PALIGEMMA + "model.multi_modal_projector.linear."
LANGUAGE = PALIGEMMA + "model.language_model."
EXPERT = "paligemma_with_expert.gemma_expert.model."

LM_HEAD = PALIGEMMA + "lm_head.weight"  # tied: under this name files keep the token embedding
EMBED_TOKENS = LANGUAGE + "embed_tokens.weight"  # the same where a file is untied
EXPERT_LM_HEAD = "paligemma_with_expert.gemma_expert.lm_head.weight"

# openpi prefix -> prefix in Pi05; the first match counts. Everything else has the same name.
PREFIXES = (
    (LM_HEAD, "vlm.embed_tokens.weight"),
    (VISION + "embeddings.", "vision."),
    (VISION + "encoder.layers.", "vision.layers."),
    (VISION, "vision."),
    (PROJECTOR, "projector."),
    (LANGUAGE, "vlm."),
    (EXPERT, "expert."),
)


@dataclass(frozen=True)
class WeightSpec:
    """One tensor of the layout."""

    shape: tuple[int, ...]
    inference: bool = True  # False: no action depends on it

    @property
    def size(self) -> int:
        """Number of elements."""
        size = 1
        for dim in self.shape:
            size *= dim
        return size


def model_name(openpi_name: str) -> str:
    """Name in `Pi05` of an openpi tensor (the expert's lm_head has none and keeps its own)."""
    for theirs, ours in PREFIXES:
        if openpi_name.startswith(theirs):
            return ours + openpi_name[len(theirs) :]
    return openpi_name


def openpi_layout(config: Pi05Config) -> dict[str, WeightSpec]:
    """Every tensor of an openpi pi0.5 file of this config, tied embedding under lm_head.

    At inference nothing reads the expert's lm_head, the prefix stack's final norm and the part
    of its last block behind the K and V projections.
    """
    layout: dict[str, WeightSpec] = {}
    W = config.expert.width
    for name, rows, columns in (
        ("action_in_proj", W, config.action_dim),
        ("action_out_proj", config.action_dim, W),
        ("time_mlp_in", W, W),
        ("time_mlp_out", W, W),
    ):
        layout[f"{name}.weight"] = WeightSpec((rows, columns))
        layout[f"{name}.bias"] = WeightSpec((rows,))
    layout[LM_HEAD] = WeightSpec((config.vocab, config.vlm.width))
    layout[EXPERT_LM_HEAD] = WeightSpec((config.vocab, W), inference=False)
    layout.update(_vision(config.vision, config.vlm.width))
    layout.update(_language(config.vlm))
    layout.update(_expert(config.expert))
    return layout


def _vision(config: VisionConfig, out: int) -> Iterator[tuple[str, WeightSpec]]:
    D, M = config.hidden_size, config.intermediate_size

    def affine(name: str, *shape: int) -> Iterator[tuple[str, WeightSpec]]:
        yield f"{name}.weight", WeightSpec(shape)
        yield f"{name}.bias", WeightSpec(shape[:1])

    yield from affine(PROJECTOR[:-1], out, D)
    yield from affine(
        VISION + "embeddings.patch_embedding", D, 3, config.patch_size, config.patch_size
    )
    yield VISION + "embeddings.position_embedding.weight", WeightSpec((config.tokens, D))
    for index in range(config.num_hidden_layers):
        layer = f"{VISION}encoder.layers.{index}."
        yield from affine(layer + "layer_norm1", D)
        yield from affine(layer + "layer_norm2", D)
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from affine(f"{layer}self_attn.{name}", D, D)
        yield from affine(layer + "mlp.fc1", M, D)
        yield from affine(layer + "mlp.fc2", D, M)
    yield from affine(VISION + "post_layernorm", D)


def _block(layer: str, config: GemmaConfig) -> Iterator[tuple[str, WeightSpec]]:
    D, M = config.width, config.mlp_dim
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    for name, rows, columns in (
        ("self_attn.q_proj", q, D),
        ("self_attn.k_proj", kv, D),
        ("self_attn.v_proj", kv, D),
        ("self_attn.o_proj", D, q),
        ("mlp.gate_proj", M, D),
        ("mlp.up_proj", M, D),
        ("mlp.down_proj", D, M),
    ):
        yield f"{layer}{name}.weight", WeightSpec((rows, columns))


def _language(config: GemmaConfig) -> Iterator[tuple[str, WeightSpec]]:
    live = ("input_layernorm", "k_proj", "v_proj")
    for index in range(config.depth):
        layer = f"{LANGUAGE}layers.{index}."
        norms = ("input_layernorm", "post_attention_layernorm")
        tensors = [(f"{layer}{norm}.weight", WeightSpec((config.width,))) for norm in norms]
        for name, spec in (*tensors, *_block(layer, config)):
            used = index < config.depth - 1 or any(part in name for part in live)
            yield name, WeightSpec(spec.shape, inference=used)
    yield LANGUAGE + "norm.weight", WeightSpec((config.width,), inference=False)


def _expert(config: GemmaConfig) -> Iterator[tuple[str, WeightSpec]]:
    def norm(name: str) -> Iterator[tuple[str, WeightSpec]]:
        yield f"{name}.dense.weight", WeightSpec((3 * config.width, config.width))
        yield f"{name}.dense.bias", WeightSpec((3 * config.width,))

    for index in range(config.depth):
        layer = f"{EXPERT}layers.{index}."
        yield from norm(layer + "input_layernorm")
        yield from norm(layer + "post_attention_layernorm")
        yield from _block(layer, config)
    yield from norm(EXPERT + "norm")
