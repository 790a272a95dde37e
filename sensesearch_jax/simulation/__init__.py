"""A run of RL on a virtual clock: the sampler's own scheduler, with devices, tools and judge replaced
by the time that they take.
"""
