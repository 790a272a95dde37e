"""The pocket base policy from nothing: synthetic lessons, dense targets, a tokenizer."""
