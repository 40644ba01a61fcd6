"""Optimizers of trainers that have their own interface; each module needs its trainer installed."""
