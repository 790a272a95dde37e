"""The invented world: entities without end to train on, none of which looks like or is called like a
held-out one.
"""
