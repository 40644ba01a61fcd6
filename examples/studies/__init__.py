"""Experiments with figures, one command each."""
