"""Question sets and their sources."""
