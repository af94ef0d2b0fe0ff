"""The exception for errors that the user can fix."""


class UserError(ValueError):
    """An error that the user can fix.

    The text says in one line what was wrong, what was expected and what to do. Commands print it and exit with
    :attr:`exit_code`.
    """

    exit_code = 2
