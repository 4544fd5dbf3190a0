"""Robot side of the wire: action chunks to joint commands, limits, holding; no torch, no ROS."""
