"""Errors of the model."""

from __future__ import annotations

from pi05_ros.errors import Pi05Error


class CheckpointError(Pi05Error, ValueError):
    """A weight file or directory that cannot become a model; the message says why."""
