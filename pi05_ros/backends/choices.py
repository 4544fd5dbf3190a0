"""Words that name backends and precisions; imports no torch, for parameters and help texts."""

from __future__ import annotations

BACKENDS = ("auto", "eager", "cuda", "onnx", "tensorrt")
PRECISIONS = ("auto", "fp32", "bf16", "fp16", "fp8", "int8")
DENOISE_PRECISIONS = (*PRECISIONS, "fp8-w8a16", "int8-w8a16")
"""Denoise alone may keep 16-bit activations against 8-bit weights (backend cuda)."""
