"""Edits of pipelines of this package: modifiers, groups, hyperparameters, packing."""
