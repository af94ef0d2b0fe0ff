"""The one exception that means "the user can fix this": commands print its text as a single line and exit with 2."""


class UserError(ValueError):
    """Something the user asked for cannot be done: the text says what was wrong, what was expected and what to do."""
