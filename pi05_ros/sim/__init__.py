"""Simulated arm: MuJoCo world, rendering, tasks, scripted expert, training and evaluation."""

import contextlib

# Software OpenGL (Mesa) brings an LLVM of its own; when Triton is loaded after it, as torch does
# whenever it likes, the process dies with a segmentation fault. The other way round works.
with contextlib.suppress(ImportError):
    import triton  # noqa: F401
