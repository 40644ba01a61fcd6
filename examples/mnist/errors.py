"""Errors that the user can fix."""


class UserError(ValueError):
    """One line for the user: the place, what was found, what to do."""
