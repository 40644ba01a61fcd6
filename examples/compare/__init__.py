"""Optimizers compared on handwritten digits: `python -m examples.compare`."""
