"""Every field of a config, and what can be told of a run from its config alone, before any work."""
