"""Faults that a training survives."""
