"""Errors of the model room."""

from __future__ import annotations


class CheckpointError(ValueError):
    """A weight file or directory that cannot become a model; the message says why."""
