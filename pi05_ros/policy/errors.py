"""Errors a user of the policy can cause; each message is one line that says what to change."""

from __future__ import annotations

from pi05_ros.errors import Pi05Error


class PolicyError(Pi05Error, ValueError):
    """A wrong observation, parameter, tokenizer or statistics file."""


class RobotProfileError(PolicyError):
    """A robot profile that does not exist or does not fit the schema."""
