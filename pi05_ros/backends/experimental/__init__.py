"""Engines kept for comparison, outside the verified path: torch._scaled_mm, torch-tensorrt."""
