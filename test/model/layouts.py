"""The tiny weights re-written into every layout people have."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from model_fixtures import weights
from safetensors.torch import save_file

from pi05_ros.model.dtypes import parameter_dtype
from pi05_ros.model.layout import (
    EMBED_TOKENS,
    EXPERT,
    EXPERT_LM_HEAD,
    LM_HEAD,
    VISION,
    VISION_TOWER,
    model_name,
)

Tensors = dict[str, torch.Tensor]


def mixed(tensors: Tensors) -> Tensors:
    return {n: t.to(parameter_dtype(model_name(n), torch.bfloat16)) for n, t in tensors.items()}


def bf16(tensors: Tensors) -> Tensors:
    return {name: t.bfloat16() for name, t in tensors.items()}


def untied(tensors: Tensors) -> Tensors:
    """Both names, with a dead lm_head that differs."""
    out = dict(tensors)
    out[EMBED_TOKENS] = tensors[LM_HEAD].clone()
    out[LM_HEAD] = tensors[LM_HEAD] + 1
    return out


def embed_only(tensors: Tensors) -> Tensors:
    out = dict(tensors)
    out[EMBED_TOKENS] = out.pop(LM_HEAD)
    return out


def without_expert_head(tensors: Tensors) -> Tensors:
    return {name: t for name, t in tensors.items() if name != EXPERT_LM_HEAD}


def lerobot(tensors: Tensors) -> Tensors:
    return {f"model.{name}": t for name, t in tensors.items()}


def flat_tower(tensors: Tensors) -> Tensors:
    """Names of transformers 5.23, with the pooling head that some files carry."""
    out = {name.replace(VISION, VISION_TOWER): t for name, t in tensors.items()}
    out[VISION_TOWER + "head.probe"] = torch.ones(1, 1, 8)
    return out


def old_names(tensors: Tensors) -> Tensors:
    """Time MLP under its pi0 name, and leftovers of pi0 that LeRobot drops."""
    out = {f"action_{n}" if n.startswith("time_mlp_") else n: t for n, t in tensors.items()}
    out["state_proj.weight"], out["state_proj.bias"] = torch.ones(32, 32), torch.ones(32)
    out[EXPERT + "norm.weight"] = torch.ones(32)
    out[EXPERT + "layers.0.input_layernorm.weight"] = torch.ones(32)
    return out


LAYOUTS: dict[str, Callable[[Tensors], Tensors]] = {
    "openpi fp32": dict,
    "openpi bf16": bf16,
    "openpi mixed": mixed,
    "openpi untied": untied,
    "openpi embed_tokens": embed_only,
    "openpi no junk": without_expert_head,
    "lerobot 0.4": lerobot,
    "lerobot 0.4 old names": lambda t: lerobot(old_names(t)),
    "lerobot 0.4 unprefixed": old_names,
    "lerobot 0.5": lambda t: lerobot(untied(t)),
    "lerobot 0.5 mixed": lambda t: lerobot(untied(mixed(t))),
    "lerobot 0.6 flat": lambda t: lerobot(untied(flat_tower(t))),
    "openpi flat": flat_tower,
}

LEROBOT_CONFIG = {
    "type": "pi05",
    "paligemma_variant": "gemma_2b",
    "action_expert_variant": "gemma_300m",
    "dtype": "float32",
    "chunk_size": 30,
    "n_action_steps": 30,
    "max_state_dim": 32,
    "max_action_dim": 32,
    "image_resolution": [224, 224],
    "tokenizer_max_length": 180,
}


def write(directory: Path, tensors: Tensors, config: dict | None = None) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    copies = {name: t.clone().contiguous() for name, t in tensors.items()}
    save_file(copies, directory / "model.safetensors")
    if config is not None:
        (directory / "config.json").write_text(json.dumps(config))
    return directory


def write_layout(directory: Path, layout: str, config: dict | None = None) -> Path:
    return write(directory, LAYOUTS[layout](weights()), config)
