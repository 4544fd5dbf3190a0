"""Kernels for compute capability 9.0, CUDA C++ compiled with NVRTC: denoising, prefill, vision.

NVRTC comes with every CUDA build of PyTorch, so the user needs no compiler. Where it is missing,
or the device is another, the Triton kernels run instead (see `choice.py`).
"""
