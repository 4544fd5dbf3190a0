"""The node's logic without ROS: buffer, pacing, inference, parameters, statistics."""
