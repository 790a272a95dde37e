"""The pocket base policy from nothing: synthetic examples, dense targets, a tokenizer."""
