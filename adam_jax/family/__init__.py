"""The members: each file is one paper, its rule, its scale_by_* and its aliases."""
