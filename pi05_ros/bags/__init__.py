"""Recorded bags: reading, topics, timelines, chunk records; no rclpy."""
