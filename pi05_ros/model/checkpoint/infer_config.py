"""The config of a checkpoint, from what it says and what its weights show.

Precedence: an explicit config > config.json > the weights > a stated assumption. Two sources
that state the same number differently are an error, with two exceptions where the weights are
taken and a note is left: names of variants, and LeRobot's image_resolution (its default is
written into every config.json).

The weights show every size except these:
    horizon            positions are rotary, so any H fits; assumed 50
    max_prompt_tokens  assumed 200
    vision heads       only their product with head_dim; the presets' towers are known by their
                       width; elsewhere So400m's head_dim of 72 is assumed, with a warning, where
                       it divides the width
    Gemma heads        q rows = num_heads * head_dim, k rows = num_kv_heads * head_dim; one KV
                       head is assumed, as in all Gemma variants of openpi
"""

from __future__ import annotations

import logging
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pi05_ros.model.checkpoint.discovery import ACCEPTED, shorten
from pi05_ros.model.checkpoint.open import Checkpoint
from pi05_ros.model.config import (
    GEMMA_2B,
    GEMMA_300M,
    HORIZON,
    MAX_PROMPT_TOKENS,
    PRESETS,
    GemmaConfig,
    Pi05Config,
    VisionConfig,
)
from pi05_ros.model.errors import CheckpointError
from pi05_ros.model.layout import EXPERT, LANGUAGE, LM_HEAD, PROJECTOR, VISION

logger = logging.getLogger(__name__)

VARIANTS = {
    "gemma_2b": GEMMA_2B,
    "gemma_2b_lora": GEMMA_2B,
    "gemma_300m": GEMMA_300M,
    "gemma_300m_lora": GEMMA_300M,
    "dummy": GemmaConfig(width=64, depth=4, mlp_dim=128, head_dim=16),
}
SO400M_HEAD_DIM = 72
# Scalars of Pi05Config under their names in openpi's, LeRobot's and our config.json.
SCALARS = {
    "action_dim": ("action_dim", "max_action_dim"),
    "horizon": ("horizon", "action_horizon", "chunk_size"),
    "max_prompt_tokens": ("max_prompt_tokens", "max_token_len", "tokenizer_max_length"),
    "vocab": ("vocab",),
}
Votes = tuple[tuple[str, int], ...]  # (tensor name, axis)


@dataclass(frozen=True)
class InferredConfig:
    """A config with where each part came from.

    Attributes:
        config: the result.
        sources: field -> "explicit", "config.json", "weights" or "assumed".
        notes: assumptions and disagreements in words.

    """

    config: Pi05Config
    sources: Mapping[str, str]
    notes: tuple[str, ...]


def infer_config(checkpoint: Checkpoint) -> InferredConfig:
    """Config of a checkpoint that came without an explicit one.

    Raises:
        CheckpointError: sources contradict each other, or a size cannot be told.

    """
    return _Inference(checkpoint).run()


class _Inference:
    def __init__(self, checkpoint: Checkpoint) -> None:
        self.path: Path = checkpoint.path
        self.shapes = {name: entry.shape for name, entry in checkpoint.tensors.items()}
        self.said = checkpoint.config_json
        self.adapters = tuple(checkpoint.adapters)
        self.sources: dict[str, str] = {}
        self.notes: list[str] = []

    def fail(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: {what}; {ACCEPTED}")

    # evidence -------------------------------------------------------------------------------

    def depth(self, *stacks: str) -> int:
        """One more than the highest layer number; the file cannot have more layers than names."""
        pattern = re.compile(rf"(?:{'|'.join(map(re.escape, stacks))})layers\.(\d{{1,6}})\.")
        found = {int(match[1]) for name in self.shapes if (match := pattern.match(name))}
        if not found:
            raise self.fail(f"no tensors under {' or '.join(stacks)}layers")
        if max(found) >= len(self.shapes):
            raise self.fail(f"a layer is numbered {max(found)}, more than the file can hold")
        return max(found) + 1

    def layers(self, stack: str, depth: int, name: str, axis: int) -> Votes:
        return tuple((f"{stack}layers.{index}.{name}", axis) for index in range(depth))

    def vote(self, field: str, *candidates: tuple[str, int]) -> int:
        """The size most of the candidate tensors agree on, so that one wrong tensor stands out
        when the shapes are compared afterwards.
        """
        sizes = [
            self.shapes[name][axis]
            for name, axis in candidates
            if name in self.shapes and len(self.shapes[name]) > axis
        ]
        if not sizes:
            missing = [name for name, _ in candidates if name not in self.shapes]
            raise self.fail(f"cannot tell {field}: missing tensors {shorten(missing)}")
        size = Counter(sizes).most_common(1)[0][0]
        if size < 1:
            raise self.fail(f"{field} would be 0: {candidates[0][0]} is empty")
        self.sources[field] = "weights"
        return size

    def stated(self, section: str, field: str) -> int | None:
        """A number of our own config.json structure."""
        values = self.said.get(section)
        if not isinstance(values, Mapping):
            return None
        return self.integer(f"{section}.{field}", values.get(field))

    def integer(self, name: str, value: Any) -> int | None:
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 2**31:
            raise self.fail(f"config.json: {name} is {value!r:.100}, not a positive integer")
        return value

    def agree(self, field: str, shown: int, said: int | None) -> int:
        if said is not None and said != shown:
            raise self.fail(f"config.json says {field} {said} but the weights show {shown}")
        return shown

    def scalar(self, field: str) -> int | None:
        """A scalar of config.json under any of its names, which must agree."""
        found = {
            name: self.integer(name, self.said.get(name))
            for name in SCALARS[field]
            if self.said.get(name) is not None
        }
        if len(set(found.values())) > 1:
            raise self.fail(f"config.json contradicts itself: {found}")
        return next(iter(found.values()), None)

    # parts ----------------------------------------------------------------------------------

    def run(self) -> InferredConfig:
        depth = self.depth(LANGUAGE, EXPERT)
        vlm = self.gemma("vlm", LANGUAGE, depth, "paligemma_variant")
        expert = self.gemma("expert", EXPERT, depth, "action_expert_variant")
        vocab = self.agree("vocab", self.vote("vocab", (LM_HEAD, 0)), self.scalar("vocab"))
        action_dim = self.vote(
            "action_dim",
            ("action_in_proj.weight", 1),
            ("action_out_proj.weight", 0),
            ("action_out_proj.bias", 0),
        )
        action_dim = self.agree("action_dim", action_dim, self.scalar("action_dim"))
        vision = self.vision()
        horizon = self.told("horizon", HORIZON)
        max_prompt_tokens = self.told("max_prompt_tokens", MAX_PROMPT_TOKENS)
        try:
            config = Pi05Config(
                vision,
                vlm,
                expert,
                vocab,
                action_dim,
                horizon,
                max_prompt_tokens,
                **{k: self.said[k] for k in ("rope", "clock") if k in self.said},
            )
        except (ValueError, TypeError) as error:
            raise self.fail(f"its sizes do not fit together: {error}") from error
        return InferredConfig(config, dict(self.sources), tuple(self.notes))

    def told(self, field: str, default: int) -> int:
        """A field that weights do not show."""
        said = self.scalar(field)
        self.sources[field] = "assumed" if said is None else "config.json"
        if said is None:
            self.notes.append(f"{field} {default} is assumed; nothing in the checkpoint says it")
        return default if said is None else said

    def gemma(self, part: str, stack: str, depth: int, variant_key: str) -> GemmaConfig:
        def size(field: str, *candidates: tuple[str, int]) -> int:
            shown = self.vote(f"{part}.{field}", *candidates)
            return self.agree(f"{part}.{field}", shown, self.stated(part, field))

        outer: Votes = ((LM_HEAD, 1), (PROJECTOR + "weight", 0))
        if part == "expert":
            outer = (("action_in_proj.weight", 0), ("action_out_proj.weight", 1))
        q = self.layers(stack, depth, "self_attn.q_proj.weight", 1)
        width = size("width", *outer, *q)
        mlp_dim = size("mlp_dim", *self.layers(stack, depth, "mlp.gate_proj.weight", 0))
        q_rows = self.vote(f"{part} q rows", *((name, 0) for name, _ in q))
        k = self.layers(stack, depth, "self_attn.k_proj.weight", 0)
        kv_rows = self.vote(f"{part} k rows", *k)
        for rows in ("q rows", "k rows"):
            del self.sources[f"{part} {rows}"]
        self.agree(f"{part}.depth", depth, self.stated(part, "depth"))
        self.sources[f"{part}.depth"] = "weights"

        variant_name = self.said.get(variant_key)
        variant = VARIANTS.get(variant_name) if isinstance(variant_name, str) else None
        if isinstance(variant_name, str) and variant_name.endswith("_lora"):
            self.require_adapters(stack, variant_key, variant_name)
        same = variant is not None and (variant.width, variant.depth, variant.mlp_dim) == (
            width,
            depth,
            mlp_dim,
        )
        if variant_name is not None and not same:
            self.notes.append(
                f"config.json calls the {part} {variant_name!r:.100}, which its weights are not "
                f"(width {width}, depth {depth}); the weights are used"
            )
        kv_heads, source = self.stated(part, "num_kv_heads"), "config.json"
        if kv_heads is None and variant is not None and same:
            kv_heads = variant.num_kv_heads
        if kv_heads is None:
            kv_heads, source = 1, "assumed"
        head_dim = self.stated(part, "head_dim") or kv_rows // kv_heads
        heads = self.stated(part, "num_heads") or q_rows // head_dim
        if head_dim * kv_heads != kv_rows or head_dim * heads != q_rows:
            raise self.fail(
                f"{part}: {heads} query and {kv_heads} KV heads of {head_dim} do not make the "
                f"{q_rows} query and {kv_rows} key rows of the weights"
            )
        self.sources[f"{part}.heads"] = source
        if source == "assumed":
            self.notes.append(
                f"{part}: one KV head is assumed, so {heads} query heads of {head_dim}"
            )
        return GemmaConfig(width, depth, mlp_dim, heads, kv_heads, head_dim)

    def require_adapters(self, stack: str, key: str, variant: str) -> None:
        """Openpi's converter to PyTorch drops LoRA adapters and leaves the variant's name."""
        if not any(name.startswith(stack) for name in self.adapters):
            plain = variant.removesuffix("_lora")
            raise self.fail(
                f"config.json says {key} {variant!r}, but there are no LoRA adapters for it: "
                "openpi's converter leaves them out, and the model would act as before "
                "fine-tuning. Merge them into the weights before converting, then write "
                f"{plain!r} into config.json (also if they are merged already)"
            )

    def vision(self) -> VisionConfig:
        encoder = VISION + "encoder."
        depth = self.depth(encoder)
        patches = VISION + "embeddings.patch_embedding."
        table = VISION + "embeddings.position_embedding.weight"

        def size(field: str, *candidates: tuple[str, int]) -> int:
            shown = self.vote(f"vision.{field}", *candidates)
            return self.agree(f"vision.{field}", shown, self.stated("vision", field))

        width = size("hidden_size", (patches + "bias", 0), (PROJECTOR + "weight", 1), (table, 1))
        mlp_dim = size("intermediate_size", *self.layers(encoder, depth, "mlp.fc1.weight", 0))
        patch = size("patch_size", (patches + "weight", 2), (patches + "weight", 3))
        tokens = self.vote("vision.image_size", (table, 0))
        if math.isqrt(tokens) ** 2 != tokens:
            raise self.fail(f"{table} has {tokens} rows, which is not a square of patches")
        image = math.isqrt(tokens) * patch
        self.agree("vision.image_size", image, self.stated("vision", "image_size"))
        self.agree("vision.depth", depth, self.stated("vision", "num_hidden_layers"))
        self.sources["vision.num_hidden_layers"] = "weights"
        resolution = self.said.get("image_resolution")
        if resolution is not None and resolution != [image, image]:
            self.notes.append(
                f"config.json says image_resolution {resolution!r:.100}; the position table is "
                f"for {image} x {image} pixels, which is used"
            )
        heads = self.vision_heads(width)
        if width % heads:
            raise self.fail(f"{heads} vision heads do not divide the width {width}")
        return VisionConfig(width, mlp_dim, depth, heads, image, patch)

    def vision_heads(self, width: int) -> int:
        self.sources["vision.num_attention_heads"] = "config.json"
        said = self.stated("vision", "num_attention_heads")
        if said is not None:
            return said
        self.sources["vision.num_attention_heads"] = "assumed"
        known = {c.vision.hidden_size: c.vision.num_attention_heads for c in PRESETS.values()}
        heads = known.get(width, 0)
        if not heads and width % SO400M_HEAD_DIM == 0:
            heads = width // SO400M_HEAD_DIM
            logger.warning(
                "%s: the weights do not tell the number of vision heads; %d of %d are assumed. "
                "Another number loads as well and gives wrong actions",
                self.path,
                heads,
                SO400M_HEAD_DIM,
            )
        if heads:
            self.notes.append(f"vision: {heads} heads of {width // heads} are assumed")
            return heads
        raise self.fail(
            f"weights of width {width} do not tell the number of vision heads; give a config, or "
            'config.json with {"vision": {"num_attention_heads": ...}}'
        )
