"""Faults of convention: what each would do to the chunks, and what explains them."""
