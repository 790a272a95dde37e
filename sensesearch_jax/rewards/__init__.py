"""What a trajectory is worth: accuracy, format, tool cost, and whether it counts at all."""
