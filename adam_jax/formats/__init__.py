"""How one slot of one leaf is stored. Knows JAX, and nothing of rules."""
