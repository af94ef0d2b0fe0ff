"""What the commands of this package tell instead of a traceback."""


class UnusableError(Exception):
    """A command cannot do what it was asked; the message is one line."""
