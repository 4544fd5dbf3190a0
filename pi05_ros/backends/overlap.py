"""Engines whose halves may run at the same time: the context of one frame under the denoising of
the frame before.

More frames per second, each of them later: both halves share the processors, and a finished
context waits until the denoising before it has ended.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from pi05_ros.backends.engine import Engine
from pi05_ros.backends.errors import BackendError

if TYPE_CHECKING:
    from pi05_ros.backends.cuda.engine import CudaEngine

# Their halves share nothing that either of them writes.
_HOST_THREADS = ("eager", "onnx")


def overlapped(engine: Engine) -> Any:
    """Engine whose `context` may be called from one thread while another one is in `denoise`.

    Both calls return when their work is done. One call of each is allowed at a time, and a
    context stays valid until the second context after it is asked for.

    Raises:
        BackendError: the backend's halves cannot run at the same time.

    """
    if engine.backend == "cuda":
        from pi05_ros.backends.cuda.pipeline import Pipeline

        return engine if isinstance(engine, Pipeline) else Pipeline(cast("CudaEngine", engine))
    if engine.backend in _HOST_THREADS:
        return engine
    raise BackendError(
        f"backend {engine.backend!r} cannot overlap context and denoise (its stages share "
        "scratch memory); accepted: cuda, eager, onnx"
    )
