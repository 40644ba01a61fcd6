"""The members: one file per paper, with its rule, its scale_by_* and its aliases."""
