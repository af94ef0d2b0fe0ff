"""The error of an unavailable kernel backend."""


class BackendUnavailableError(RuntimeError):
    """The requested kernel backend cannot run here."""
