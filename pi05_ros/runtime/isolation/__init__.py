"""The policy in a process of its own: node and engine share images by memory, and no fate."""
