"""What a small motion tells about delays; no ROS."""
