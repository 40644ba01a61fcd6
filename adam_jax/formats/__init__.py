"""How one slot of one leaf is stored. Imports JAX, and knows nothing of rules."""
