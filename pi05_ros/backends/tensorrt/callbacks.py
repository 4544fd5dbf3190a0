"""Small subclasses of TensorRT's callback interfaces, made for the module of one flavor.

TensorRT keeps only a plain pointer to them: the caller that passes one on must keep it alive.
"""

from __future__ import annotations

import functools
import logging
from collections import deque
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

KEPT = 200  # warnings and errors; a robot may run for weeks

log = logging.getLogger("pi05_ros.tensorrt")


class Callbacks(NamedTuple):
    """The classes of one flavor."""

    logger: Any
    error_recorder: Any
    progress: Any


@functools.lru_cache(maxsize=4)
def callbacks_of(module: ModuleType) -> Callbacks:
    """Classes over the interfaces of ``module``: ``tensorrt`` or ``tensorrt_rtx``."""
    if TYPE_CHECKING:
        import tensorrt as trt
    else:
        trt = module

    levels = {
        trt.ILogger.Severity.INTERNAL_ERROR: logging.CRITICAL,
        trt.ILogger.Severity.ERROR: logging.ERROR,
        trt.ILogger.Severity.WARNING: logging.WARNING,
        trt.ILogger.Severity.INFO: logging.INFO,
        trt.ILogger.Severity.VERBOSE: logging.DEBUG,
    }

    class Logger(trt.ILogger):
        """Passes TensorRT's messages to Python's logging and keeps warnings and errors.

        Attributes:
            kept: warnings and errors.
            kernels: the builder's list of the kernels of the finished engine, which it prints at
                VERBOSE with detailed profiling verbosity; empty before.

        """

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.kept: deque[str] = deque(maxlen=KEPT)
            self.kernels = ""

        def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
            """Take one message."""
            level = levels.get(severity, logging.INFO)
            log.log(level, msg)
            if level >= logging.WARNING:
                self.kept.append(f"{logging.getLevelName(level)}: {msg}")
            if msg.startswith("Layers:"):
                self.kernels = msg

        def last_errors(self, count: int = 3) -> str:
            """The newest errors, for messages of our own."""
            errors = [line for line in self.kept if not line.startswith("WARNING")]
            return "; ".join(errors[-count:]) or "TensorRT gave no reason"

    class ErrorRecorder(trt.IErrorRecorder):
        """Passes the errors of a builder or runtime, and of all they make, on to a `Logger`.

        They come with a code, and from any thread. Without a recorder TensorRT writes them to
        the log; with one it need not.
        """

        def __init__(self, logger: Logger) -> None:
            trt.IErrorRecorder.__init__(self)
            self._logger = logger
            self._errors: list[tuple[trt.ErrorCodeTRT, str]] = []
            self._overflowed = False

        def report_error(self, code: trt.ErrorCodeTRT, text: str) -> bool:
            """Take one error; True means that the call that had it ends."""
            if len(self._errors) < KEPT:
                self._errors.append((code, text))
            else:
                self._overflowed = True
            self._logger.log(trt.ILogger.Severity.ERROR, f"{code.name}: {text}")
            return True

        def num_errors(self) -> int:
            """Errors since the last `clear`."""
            return len(self._errors)

        def get_num_errors(self) -> int:
            """The same: what the bindings of 10.13 and 11.4 really call for `num_errors`."""
            return self.num_errors()

        def get_error_code(self, index: int) -> trt.ErrorCodeTRT:
            """Code of one of them."""
            return self._errors[index][0]

        def get_error_desc(self, index: int) -> str:
            """Text of one of them."""
            return self._errors[index][1]

        def has_overflowed(self) -> bool:
            """Whether errors came after the list was full; the log has them."""
            return self._overflowed

        def clear(self) -> None:
            """Forget all; the logger keeps its lines."""
            self._errors.clear()
            self._overflowed = False

    class Progress(trt.IProgressMonitor):
        """Turns TensorRT's build phases into calls ``report(phase, step, steps)``."""

        def __init__(self, report: Callable[[str, int, int], None]) -> None:
            trt.IProgressMonitor.__init__(self)
            self._report = report
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            """Begin a phase."""
            self._steps[phase_name] = num_steps
            self._report(phase_name, 0, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            """Count a step; True lets the build go on."""
            self._report(phase_name, step + 1, self._steps.get(phase_name, step + 1))
            return True

        def phase_finish(self, phase_name: str) -> None:
            """End a phase."""
            steps = self._steps.pop(phase_name, 1)
            self._report(phase_name, steps, steps)

    return Callbacks(Logger, ErrorRecorder, Progress)
