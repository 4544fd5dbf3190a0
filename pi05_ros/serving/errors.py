"""Errors of the policy server and of the remote policy."""

from __future__ import annotations

from pi05_ros.errors import Pi05Error


class WireError(Pi05Error, ValueError):
    """A frame that is no request or no answer; the text says what is accepted."""


class ServingError(Pi05Error, RuntimeError):
    """The server cannot start as asked, or a request was given up by the server."""


class RemoteError(Pi05Error, RuntimeError):
    """A remote policy gave no usable answer: away, slow, another model, or garbage."""
