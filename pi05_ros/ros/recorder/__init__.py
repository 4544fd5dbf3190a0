"""The episode recorder: what policy, arm and people did, as a bag for each task."""
