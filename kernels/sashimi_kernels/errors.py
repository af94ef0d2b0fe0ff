"""The error of a kernel backend that cannot run."""


class BackendUnavailableError(RuntimeError):
    """A kernel backend was requested by name and cannot run here."""
