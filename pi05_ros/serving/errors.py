"""Errors of the policy server."""

from __future__ import annotations

from pi05_ros.errors import Pi05Error


class ServingError(Pi05Error, RuntimeError):
    """The server cannot start as asked, or a request was given up by the server."""
