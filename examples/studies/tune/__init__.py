"""Search for the hyperparameters of AdamW: `python -m examples.studies.tune`."""
