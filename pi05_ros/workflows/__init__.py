"""What the engine commands do, on frozen requests: no argparse, no exit codes."""
