"""Quantised and compiled stages: calibrate, export, check."""
