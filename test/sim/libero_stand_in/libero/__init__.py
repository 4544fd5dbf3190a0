"""Stands in for hf-libero 0.1.4: the same names, shapes and manners without its simulator."""
