"""The demo: real paintings and flags, small in 4K pictures, its expert, the pretraining of its base
policy, its run.
"""
