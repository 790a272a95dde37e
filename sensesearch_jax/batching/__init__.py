"""Groups of trajectories as rows of padded arrays."""
