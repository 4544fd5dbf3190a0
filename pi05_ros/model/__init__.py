"""pi0.5 in plain PyTorch: the reference that every backend is judged by."""
