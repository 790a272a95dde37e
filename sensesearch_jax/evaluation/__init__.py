"""Evaluation: benchmarks, scoring, intervals, and the report a person reads."""
