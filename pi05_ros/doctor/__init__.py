"""`pi05 doctor`: what works on this machine, what is missing, and the command that fixes it."""
