"""Qwen2.5-VL in Flax: parameters, layers, attention by platform, image processor, Hugging Face
checkpoints.
"""
