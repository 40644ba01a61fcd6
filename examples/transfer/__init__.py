"""Hyperparameters of a small model, for a wide one, a deep one and other batches."""
