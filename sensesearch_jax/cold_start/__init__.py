"""Demonstrations for SFT: an expert's trajectories with real tools, and which of them are kept."""
