"""Bags: read them, run the policy over them live or offline, record chunks, compare runs.

Nothing here imports rclpy. Offline replay runs from a plain source tree; live replay starts
the node, a player and a recorder as processes of their own (their code is in `pi05_ros.ros`).
"""
