"""The three stages of pi0.5 behind one interface, on several engines.

What needs torch is imported when it is asked for.
"""

from typing import TYPE_CHECKING, Any

from pi05_ros.backends.choices import BACKENDS, PRECISIONS
from pi05_ros.backends.errors import BackendError

if TYPE_CHECKING:
    from pi05_ros.backends.create import create_engine, parse_precision
    from pi05_ros.backends.engine import Engine, EngineTimings, Precision

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


def __getattr__(name: str) -> Any:
    if name in ("create_engine", "parse_precision"):
        from pi05_ros.backends import create

        return getattr(create, name)
    if name in ("Engine", "EngineTimings", "Precision"):
        from pi05_ros.backends import engine

        return getattr(engine, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
