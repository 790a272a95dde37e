"""A page on which a person looks at questions one by one and accepts or rejects them."""
