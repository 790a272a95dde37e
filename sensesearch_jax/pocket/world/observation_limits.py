"""Limits of the search results that a pocket run shows; lessons and trials show as much."""

from sensesearch_jax.agent.observations import ObservationLimits

# As in configs/common.py:agent; the tool servers of the pocket runs cut passages at the same length.
LIMITS = ObservationLimits(text_results=2, image_results=3, passage_chars=160)
