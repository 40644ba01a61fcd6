"""Arithmetic on one array in one step. Imports JAX, and knows nothing of trees or storage."""
