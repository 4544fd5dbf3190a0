"""`pi05 bench compare` and `pi05 bench table`: two sides in turn, and a history."""
