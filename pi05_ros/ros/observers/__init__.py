"""Nodes that only listen: they show, count and record what others do."""
