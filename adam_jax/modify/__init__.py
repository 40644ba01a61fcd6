"""Transformations that edit pipelines: modifiers, groups, hyperparameters."""
