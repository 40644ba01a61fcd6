"""Other projects' own tests, run with our functions in place of Optax's."""
