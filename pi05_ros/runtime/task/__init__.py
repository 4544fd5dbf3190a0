"""A task from goal to result, without ROS: what is asked, what is known, what is done next."""
