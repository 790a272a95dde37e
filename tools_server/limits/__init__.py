"""What keeps calls in bounds: deadlines, waiting rooms, rates, retries and circuit breakers."""
