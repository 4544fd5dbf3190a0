"""One policy in several processes, on one machine or many, with Ray Serve."""
