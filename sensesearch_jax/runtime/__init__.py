"""Runtime: what a long run needs around its arithmetic, the working directory, checkpoints,
metrics.
"""
