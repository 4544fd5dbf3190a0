"""The three stages of pi0.5 behind one interface, on several engines."""
