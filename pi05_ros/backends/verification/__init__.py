"""Compare a backend with the plain model, stage by stage, and report it."""
