"""Text and images to arrays, on the host: chat template, tokenizer, patches, positions, packed groups."""
