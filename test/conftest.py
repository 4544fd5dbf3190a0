"""Modules in this folder are shared by tests of several rooms."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
