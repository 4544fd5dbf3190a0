"""Writing recordings that survive what happens to disks and processes; no rclpy."""
