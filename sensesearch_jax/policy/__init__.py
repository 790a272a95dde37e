"""The policy: Qwen2.5-VL in Flax NNX, its sizes, its attention and its Hugging Face checkpoints."""
