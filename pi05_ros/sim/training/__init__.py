"""Demonstrations and training of the small policy that ships with the package."""
