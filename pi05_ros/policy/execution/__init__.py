"""From action chunks to joint commands: strategies, limits, staleness, real-time chunking."""
