"""What surrounds a member: modifiers of its update, hyperparameters in the state, groups."""
