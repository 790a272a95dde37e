"""Answers kept on disk: the cache of a live server and the recording that a run is replayed from."""
