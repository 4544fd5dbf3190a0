"""Errors of the backends."""

from __future__ import annotations

from pi05_ros.errors import Pi05Error


class BackendError(Pi05Error, RuntimeError):
    """A backend that is unknown, cannot run here, or cannot do what was asked of it."""
