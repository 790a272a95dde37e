"""Limits of calls: deadlines, waiting rooms, rates, retries and circuit breakers."""
