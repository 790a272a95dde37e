"""Comparison of responses with reference answers: one decision for the reward, the evaluation and the
rule judge.
"""
