"""Sizes of a pi0.5 model and the two switches that change its numbers.

`Pi05Config` is the single source of these values: presets, checkpoint inference and the
layout of a weight file all go through it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pi05_ros.errors import InvalidValueError

ROPE_CHOICES = ("fp32", "openpi-bf16")
CLOCK_CHOICES = ("openpi", "exact")
HORIZON = 50  # action_horizon of openpi's base pi0.5 config; weights do not tell it
MAX_PROMPT_TOKENS = 200  # max_token_len of every pi0.5 config in openpi


def _positive(owner: str, **values: Any) -> None:
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InvalidValueError(f"{owner}.{name} is {value!r}; accepted: an integer >= 1")


@dataclass(frozen=True)
class VisionConfig:
    """SigLIP tower; the defaults are So400m/14 at 224 pixels."""

    hidden_size: int = 1152
    intermediate_size: int = 4304
    num_hidden_layers: int = 27
    num_attention_heads: int = 16
    image_size: int = 224
    patch_size: int = 14

    def __post_init__(self) -> None:
        _positive("vision", **dataclasses.asdict(self))
        if self.image_size % self.patch_size:
            raise InvalidValueError(
                f"vision.image_size {self.image_size} is not a multiple of "
                f"patch_size {self.patch_size}"
            )
        if self.hidden_size % self.num_attention_heads:
            raise InvalidValueError(
                f"vision.hidden_size {self.hidden_size} does not divide into "
                f"{self.num_attention_heads} heads"
            )

    @property
    def tokens(self) -> int:
        """Image tokens of one camera."""
        return (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True)
class GemmaConfig:
    """One decoder stack: the PaliGemma language model or the action expert."""

    width: int
    depth: int
    mlp_dim: int
    num_heads: int = 8
    num_kv_heads: int = 1
    head_dim: int = 256

    def __post_init__(self) -> None:
        _positive("gemma", **dataclasses.asdict(self))
        if self.num_heads % self.num_kv_heads:
            raise InvalidValueError(
                f"{self.num_heads} query heads do not divide into {self.num_kv_heads} KV heads"
            )
        if self.head_dim % 2 or self.width % 2:
            raise InvalidValueError(
                f"head_dim {self.head_dim} and width {self.width} must be even (RoPE and the "
                "time embedding work on halves)"
            )


GEMMA_2B = GemmaConfig(width=2048, depth=18, mlp_dim=16384)
GEMMA_300M = GemmaConfig(width=1024, depth=18, mlp_dim=4096)


@dataclass(frozen=True)
class Pi05Config:
    """All sizes of one pi0.5.

    Attributes:
        horizon: H, actions per chunk the checkpoint was trained for. The weights work at any H,
            so `velocity` and `sample` follow the noise they are given.
        max_prompt_tokens: longer prompts are truncated by the policy.
        rope: "fp32" keeps RoPE frequencies in float32, as the JAX training did. "openpi-bf16"
            rounds them to bfloat16 as openpi's PyTorch model in bfloat16 does (its module-wide
            cast hits the frequency buffer); use it to compare with that model bit for bit.
            Prefill then keeps masked tokens unless told otherwise, as openpi does.
        clock: "openpi" accumulates the flow time in float32 as openpi's sampler does; "exact"
            computes 1 - i/N for each step as LeRobot does. The actions differ by about 2e-5.

    """

    vision: VisionConfig = VisionConfig()
    vlm: GemmaConfig = GEMMA_2B
    expert: GemmaConfig = GEMMA_300M
    vocab: int = 257152
    action_dim: int = 32
    horizon: int = HORIZON
    max_prompt_tokens: int = MAX_PROMPT_TOKENS
    rope: str = "fp32"
    clock: str = "openpi"

    def __post_init__(self) -> None:
        _positive(
            "config",
            vocab=self.vocab,
            action_dim=self.action_dim,
            horizon=self.horizon,
            max_prompt_tokens=self.max_prompt_tokens,
        )
        for name in ("depth", "num_heads", "num_kv_heads", "head_dim"):
            ours, theirs = getattr(self.vlm, name), getattr(self.expert, name)
            if ours != theirs:
                raise InvalidValueError(
                    f"vlm.{name} is {ours} but expert.{name} is {theirs}; the stacks attend to "
                    "each other layer by layer and must agree"
                )
        if self.rope not in ROPE_CHOICES:
            raise InvalidValueError(f"rope is {self.rope!r}; accepted: {', '.join(ROPE_CHOICES)}")
        if self.clock not in CLOCK_CHOICES:
            raise InvalidValueError(
                f"clock is {self.clock!r}; accepted: {', '.join(CLOCK_CHOICES)}"
            )

    @classmethod
    def preset(cls, name: str) -> Pi05Config:
        """Return "pi05", the published 3.6 B model, or "tiny", the same shape made small."""
        if name not in PRESETS:
            raise InvalidValueError(f"preset {name!r} is unknown; accepted: {', '.join(PRESETS)}")
        return PRESETS[name]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Pi05Config:
        """Read a nested mapping with `vlm`, `expert`, `vision` and the scalar fields.

        Other keys are ignored: the mapping may come from a file that says more.

        Raises:
            ValueError: a stack is missing or lacks a size, or a value is out of range.

        """
        if not isinstance(data, Mapping):
            raise InvalidValueError(f"a config is a mapping, not {type(data).__name__}")
        parts: dict[str, Any] = {
            "vision": _section(data, "vision", VisionConfig),
            "vlm": _section(data, "vlm", GemmaConfig),
            "expert": _section(data, "expert", GemmaConfig),
        }
        names = ("vocab", "action_dim", "horizon", "max_prompt_tokens", "rope", "clock")
        parts.update({name: data[name] for name in names if name in data})
        return cls(**parts)

    def to_dict(self) -> dict[str, Any]:
        """Return the mapping that `from_dict` reads."""
        return dataclasses.asdict(self)


def _section(data: Mapping[str, Any], name: str, kind: type) -> Any:
    section = data.get(name)
    if not isinstance(section, Mapping):
        raise InvalidValueError(f"config lacks the section {name!r}")
    known = {field.name for field in dataclasses.fields(kind)}
    missing = [
        field.name
        for field in dataclasses.fields(kind)
        if field.default is dataclasses.MISSING and field.name not in section
    ]
    if missing:
        raise InvalidValueError(f"config section {name!r} lacks {', '.join(missing)}")
    return kind(**{key: value for key, value in section.items() if key in known})


PRESETS = {
    "pi05": Pi05Config(),
    "tiny": Pi05Config(
        vision=VisionConfig(48, 96, 2, 4, image_size=56),
        vlm=GemmaConfig(width=64, depth=3, mlp_dim=128, head_dim=16),
        expert=GemmaConfig(width=32, depth=3, mlp_dim=64, head_dim=16),
        vocab=512,
        horizon=10,
    ),
}
