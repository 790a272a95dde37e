"""The reward of a trajectory: accuracy, format, evidence and tool cost, and whether it counts."""
