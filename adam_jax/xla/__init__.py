"""Workarounds for XLA: one file per compiler behaviour, with its symptom and measured cost."""
