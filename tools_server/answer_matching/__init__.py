"""Whether a response is a reference answer: one decision for the reward, the evaluation and the
rule judge.
"""
