"""Chunks that arrive: from the message, and whether they may be followed."""
