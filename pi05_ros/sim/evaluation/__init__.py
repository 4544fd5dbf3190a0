"""Success rates: episodes, paired statistics, results files, sessions through ROS."""
