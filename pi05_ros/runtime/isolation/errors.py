"""Why an isolated engine cannot answer."""

from __future__ import annotations

from pi05_ros.policy.errors import PolicyError


class EngineLostError(PolicyError):
    """The engine's process is dead, stands still, or starts again; the text says which and why."""


class EngineFaultError(PolicyError):
    """The engine's process reported an error of one inference, or of loading."""


class IsolationError(PolicyError):
    """Something does not fit the channel between node and engine process."""
