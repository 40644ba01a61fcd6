"""Arithmetic on one array in one step. Knows nothing of trees; `View` alone knows of storage."""
