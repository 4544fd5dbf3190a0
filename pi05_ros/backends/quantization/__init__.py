"""Presets, calibration and quantized modules, shared by export and simulation."""
