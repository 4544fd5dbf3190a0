"""Processes that others start: bag player, chunk recorder, load publisher, topic probe."""
