"""Wrappers around any Optax transformation."""
