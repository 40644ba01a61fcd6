"""Hyperparameters of a small model, used for a wide one, a deep one and other batch sizes."""
