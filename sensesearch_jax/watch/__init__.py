"""The live page of a run, or of several, while they write and afterwards."""
