"""How chunks follow each other: continuation, real-time chunking, KV cache and vision reuse."""
