"""A character-level transformer, trained with AdamW on the reference of the Python language."""
