"""What all tests share: modules in shared/, and a DDS domain for every process that runs tests.

shared/ is on the path, this folder is not: its subfolders would hide packages, as tensorrt and
launch.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "shared"))

from pi05_ros.ros.processes.domain import free_domain_id

# Workers of pytest-xdist and what they start talk in a domain, and so on ports, of their own.
os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
os.environ["ROS_DOMAIN_ID"] = str(free_domain_id())
