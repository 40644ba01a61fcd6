"""Other projects' own tests, with our names in the place of Optax's."""
