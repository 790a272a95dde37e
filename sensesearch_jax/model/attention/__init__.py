"""Attention of the decoder and of the vision tower: one entrance each, and what computes it on each
platform.
"""
