"""The fields of a config, and the checks of one before any work."""
