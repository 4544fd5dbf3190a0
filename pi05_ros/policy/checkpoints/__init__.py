"""What a checkpoint's own files say beyond weights: openpi and LeRobot conventions."""
