"""The pocket world: real paintings and flags, small in 4K pictures, and facts the pixels do not show."""
