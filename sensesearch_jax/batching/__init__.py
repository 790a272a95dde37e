"""Batches: groups of trajectories as rows of padded or packed arrays."""
