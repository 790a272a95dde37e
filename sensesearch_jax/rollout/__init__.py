"""Trajectories out of a policy: compiled sampling on the device, and the host-side scheduler
between its steps.
"""
