"""Joint limits as data, and where they are read from: YAML files and robot descriptions."""
