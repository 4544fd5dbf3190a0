"""Measures delays on a running robot."""
