"""The nodes. The only room that imports rclpy (the simulator's driver aside)."""
