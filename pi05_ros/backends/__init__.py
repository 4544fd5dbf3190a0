"""The three stages of pi0.5 behind one interface, on several engines."""

from pi05_ros.backends.create import BACKENDS, create_engine, parse_precision
from pi05_ros.backends.engine import PRECISIONS, Engine, EngineTimings, Precision
from pi05_ros.backends.errors import BackendError

__all__ = [
    "BACKENDS",
    "PRECISIONS",
    "BackendError",
    "Engine",
    "EngineTimings",
    "Precision",
    "create_engine",
    "parse_precision",
]
