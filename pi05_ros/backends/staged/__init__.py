"""The three stages as torch modules that export, and the engine that runs them."""
