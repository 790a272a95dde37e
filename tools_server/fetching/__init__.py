"""Reading what the web points to: which addresses may be reached, and bounded answers."""
