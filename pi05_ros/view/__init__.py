"""What people look at: images as the model sees them, chunks, the tool's path, latency, states."""
