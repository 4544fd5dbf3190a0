"""Observation to model inputs and back: images, normalization, robot conventions."""
