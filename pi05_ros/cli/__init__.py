"""The pi05 command."""
