"""From rules and formats to Optax transformations."""
