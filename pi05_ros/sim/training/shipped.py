"""The small trained pi0.5 that comes with the package: where it is and how big it is."""

from __future__ import annotations

from pathlib import Path

from pi05_ros.model import Pi05Config
from pi05_ros.model.config import GemmaConfig, VisionConfig

CHECKPOINT = Path(__file__).resolve().parents[1] / "checkpoint"
"""Directory in openpi's layout: weights, config.json, tokenizer.model, assets/sim_arm."""
ASSET_ID = "sim_arm"
HORIZON = 16
"""Actions per chunk, 0.8 s at 20 Hz."""

CONFIG = Pi05Config(
    vision=VisionConfig(192, 576, 5, 6, image_size=112, patch_size=14),
    vlm=GemmaConfig(width=192, depth=5, mlp_dim=512, head_dim=32),
    expert=GemmaConfig(width=128, depth=5, mlp_dim=384, head_dim=32),
    vocab=640,
    horizon=HORIZON,
    max_prompt_tokens=48,
)
"""5.9 M parameters, the same blocks as the published model."""
