"""The task node: the action RunPolicy."""
