"""From rules and formats to Optax transformations: one step, one plan, one pass."""
