"""Carries what the library logs to the logger of a running node, and so to /rosout."""

from __future__ import annotations

import logging

from rclpy.logging import LoggingSeverity
from rclpy.node import Node

from pi05_ros.runtime.text import printable

LIBRARY = "pi05_ros"


class LibraryLogs(logging.Handler):
    """Handler of the loggers ``pi05_ros.*`` that speaks with a node's logger at the same level.

    Args:
        node: whose logger is used until `detach`; one that is carried to already is not again.

    """

    def __init__(self, node: Node) -> None:
        super().__init__()
        self._logger = node.get_logger()
        library = logging.getLogger(LIBRARY)
        self._level_before = library.level
        self.target = self._logger.name
        if any(isinstance(h, LibraryLogs) and h.target == self.target for h in library.handlers):
            return
        library.setLevel(logging.DEBUG)  # the node's logger decides what is shown
        library.addHandler(self)

    def detach(self) -> None:
        """Stop carrying; may be called again."""
        library = logging.getLogger(LIBRARY)
        if self in library.handlers:
            library.removeHandler(self)
            library.setLevel(self._level_before)

    def emit(self, record: logging.LogRecord) -> None:
        """Log one record; never raises."""
        try:
            if not self._logger.is_enabled_for(_severity(record.levelno)):
                return
            text = printable(self.format(record))
            # rclpy ties one severity to each line of code that logs.
            if record.levelno >= logging.CRITICAL:
                self._logger.fatal(text)
            elif record.levelno >= logging.ERROR:
                self._logger.error(text)
            elif record.levelno >= logging.WARNING:
                self._logger.warning(text)
            elif record.levelno >= logging.INFO:
                self._logger.info(text)
            else:
                self._logger.debug(text)
        except Exception:
            self.handleError(record)


def _severity(level: int) -> LoggingSeverity:
    for severity in (
        LoggingSeverity.FATAL, LoggingSeverity.ERROR, LoggingSeverity.WARN, LoggingSeverity.INFO,
    ):  # fmt: skip
        if level >= severity.value:
            return severity
    return LoggingSeverity.DEBUG
