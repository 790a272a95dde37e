"""The scripted expert of the pocket world."""
