"""Motion towards targets within limits: joint by joint, or along the path of a chunk."""
