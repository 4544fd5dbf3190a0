"""pi0.5 in plain PyTorch: the reference that every backend is judged by."""

from pi05_ros.model.config import GemmaConfig, Pi05Config, VisionConfig
from pi05_ros.model.errors import CheckpointError
from pi05_ros.model.pi05 import Pi05
from pi05_ros.model.prefix import KVCache
from pi05_ros.model.sampler import flow_sample, flow_times

__all__ = [
    "CheckpointError",
    "GemmaConfig",
    "KVCache",
    "Pi05",
    "Pi05Config",
    "VisionConfig",
    "flow_sample",
    "flow_times",
]
