"""Rules by which answers are scored: one module per rule, and `table` says which set has which.

A rule that a benchmark publishes is followed to the letter, with what is odd in it, since it stands
for numbers to be compared with other people's. `tools_server.answer_matching` is our own decision.
"""
