"""What goes wrong in a way that the user can mend."""


class UserError(ValueError):
    """One line for the user: where, what was found, what to do."""
