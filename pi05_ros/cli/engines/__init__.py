"""Subcommands that calibrate, export, build, check and tune engines."""
