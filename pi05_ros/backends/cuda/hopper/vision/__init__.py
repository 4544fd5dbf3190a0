"""Kernels of the vision tower: products in BF16 and FP8, attention."""
