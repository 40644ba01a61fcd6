"""What happens to one array in one step. Knows JAX, and nothing of trees or storage."""
