"""Poses of the robot's links: URDF, rotations, pose actions, and joints for poses."""
