"""Attention of the decoder and of the vision tower, with an implementation for each platform."""
