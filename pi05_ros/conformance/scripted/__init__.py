"""Scripts that play faults into nodes which they start themselves."""
