"""Small subclasses of TensorRT's callback interfaces. Importing this imports `tensorrt`.

TensorRT keeps only a plain pointer to them: whoever passes one on must keep it alive.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable

import tensorrt as trt

KEPT = 200  # warnings and errors; a robot may run for weeks

log = logging.getLogger("pi05_ros.tensorrt")

_LEVELS = {
    trt.ILogger.Severity.INTERNAL_ERROR: logging.CRITICAL,
    trt.ILogger.Severity.ERROR: logging.ERROR,
    trt.ILogger.Severity.WARNING: logging.WARNING,
    trt.ILogger.Severity.INFO: logging.INFO,
    trt.ILogger.Severity.VERBOSE: logging.DEBUG,
}


class Logger(trt.ILogger):
    """Passes TensorRT's messages to Python's logging and keeps warnings and errors."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.kept: deque[str] = deque(maxlen=KEPT)

    def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
        """Take one message."""
        level = _LEVELS.get(severity, logging.INFO)
        log.log(level, msg)
        if level >= logging.WARNING:
            self.kept.append(f"{logging.getLevelName(level)}: {msg}")

    def last_errors(self, count: int = 3) -> str:
        """The newest errors, for messages of our own."""
        errors = [line for line in self.kept if not line.startswith("WARNING")]
        return "; ".join(errors[-count:]) or "TensorRT gave no reason"


class ErrorRecorder(trt.IErrorRecorder):
    """Passes the errors of a builder or runtime, and of all they make, on to a `Logger`.

    They come with a code, and from any thread. Without a recorder TensorRT writes them to the log;
    with one it need not.
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
