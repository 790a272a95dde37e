"""Sweeps: runs of any task over settings and seeds, and their comparison."""
