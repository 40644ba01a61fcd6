"""Notebooks, committed with their outputs."""
