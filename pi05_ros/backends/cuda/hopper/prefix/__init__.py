"""Kernels of the prefix: its products and its attention."""
