"""Advantages, policy losses and token log-probabilities as pure functions, and the training steps
built from them.

A formula is a function of arrays that knows no tools, no text and no files.
"""
