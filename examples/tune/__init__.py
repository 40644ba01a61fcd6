"""Hyperparameters of AdamW searched for: `python -m examples.tune`."""
