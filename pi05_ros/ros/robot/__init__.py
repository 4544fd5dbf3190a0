"""Nodes beside the executor that a particular robot needs."""
