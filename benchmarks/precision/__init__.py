"""Errors and losses in low precision."""
