"""Common base of the exceptions of this package.

A `Pi05Error` is meant for the user: its text is one line that says what was wrong, where, and what
is accepted. The `pi05` command prints it without a traceback and nodes report it as a reason. Any
other exception is a fault of the program and keeps its traceback.
"""

from __future__ import annotations


class Pi05Error(Exception):
    """Base of every exception class of pi05_ros."""


class InvalidValueError(Pi05Error, ValueError):
    """An option, setting or configuration value that is not accepted; the text says what is."""


class ResourceError(Pi05Error, RuntimeError):
    """A data file of the package, such as the robot profiles, is not where it was installed."""
