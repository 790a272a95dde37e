"""Cold start: trajectories that an expert writes with real tool calls, and the checks they must pass."""
