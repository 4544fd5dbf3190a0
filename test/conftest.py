"""Modules in shared/ are used by tests of several rooms.

This folder itself is not on the path: its subfolders would hide packages, as tensorrt and launch.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "shared"))
