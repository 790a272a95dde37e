"""The interaction of a policy and its tools: actions, protocol, environment and trajectories; no
JAX.
"""
