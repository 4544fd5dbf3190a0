"""Robot profiles: what each state and action column means."""
