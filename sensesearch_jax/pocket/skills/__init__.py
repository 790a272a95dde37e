"""Skills of a policy, each measured alone within the protocol's own turns, and their gates."""
