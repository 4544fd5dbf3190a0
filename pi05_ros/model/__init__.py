"""pi0.5 in plain PyTorch: the reference that every backend is judged by."""

from pi05_ros.model.checkpoint.file_hash import checkpoint_hash
from pi05_ros.model.checkpoint.infer_config import infer_config
from pi05_ros.model.checkpoint.load import load_checkpoint, save_openpi
from pi05_ros.model.checkpoint.open import Checkpoint, open_checkpoint
from pi05_ros.model.config import GemmaConfig, Pi05Config, VisionConfig
from pi05_ros.model.errors import CheckpointError
from pi05_ros.model.layout import openpi_layout
from pi05_ros.model.pi05 import Pi05
from pi05_ros.model.prefix import KVCache
from pi05_ros.model.sampler import flow_sample, flow_times

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "GemmaConfig",
    "KVCache",
    "Pi05",
    "Pi05Config",
    "VisionConfig",
    "checkpoint_hash",
    "flow_sample",
    "flow_times",
    "infer_config",
    "load_checkpoint",
    "open_checkpoint",
    "openpi_layout",
    "save_openpi",
]
