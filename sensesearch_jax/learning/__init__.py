"""Learning: advantages, policy losses and token log-probs as pure functions, and the steps built from them.

Everything with a formula in it is a function of arrays that knows no tools, no text and no files, so that
each can be checked against the papers and reused alone.
"""
