"""Checkpoint files: open, infer the configuration, load, summarize, draw random weights."""
