"""Optimizers compared on handwritten digits: `python -m examples.studies.compare`."""
