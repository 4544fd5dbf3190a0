"""Client of LIBERO's own simulator."""
