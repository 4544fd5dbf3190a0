"""pi0.5 on ROS 2: camera and joint-state messages in, action chunks out.

Imports nothing heavy: torch and rclpy are loaded by the packages that need them.
"""

from pkgutil import extend_path

# The generated messages (pi05_ros.msg) live in the installed copy of this package. When the
# source tree comes first on sys.path, this joins the two so that both stay importable.
__path__ = extend_path(__path__, __name__)

__version__ = "0.2.0"
