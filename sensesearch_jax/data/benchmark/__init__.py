"""A benchmark of one's own: items are checked, and looked at by a person."""
