"""Observation in, action chunk out: robot profiles, transforms, prompt, chunk strategies."""
