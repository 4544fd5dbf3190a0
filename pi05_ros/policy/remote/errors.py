"""Errors of what crosses the wire between a policy server and its clients."""

from __future__ import annotations

from pi05_ros.errors import Pi05Error


class WireError(Pi05Error, ValueError):
    """A frame that is no request or no answer; the text says what is accepted."""


class RemoteError(Pi05Error, RuntimeError):
    """A remote policy gave no usable answer: away, slow, another model, or garbage."""


class KeyFileError(Pi05Error, ValueError):
    """A file of API keys that cannot be used."""
