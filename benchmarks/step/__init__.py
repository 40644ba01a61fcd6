"""Time of a step, and of what surrounds it."""
