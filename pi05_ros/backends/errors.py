"""Errors of the backends room."""

from __future__ import annotations


class BackendError(RuntimeError):
    """A backend that is unknown, cannot run here, or cannot do what was asked of it."""
