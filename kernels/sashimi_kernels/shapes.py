"""Checks of arguments. The Triton kernels do not check bounds themselves."""

from torch import Tensor

NORMS = ("scalar", "layer")
"""Names of the norms over the channels."""


def require_shape(name: str, x: Tensor, *shape: int) -> None:
    """Raise ``ValueError`` with both shapes if the argument ``name`` does not have this shape."""
    if x.shape != shape:
        raise ValueError(f"expected {name} of shape {shape}, got {tuple(x.shape)}")


def require_samples(length: int) -> None:
    """Raise ``ValueError`` if a signal or kernel of this length has no samples. An empty batch is allowed."""
    if length < 1:
        raise ValueError(f"expected a length of at least one sample, got {length}")


def require_sequence(u: Tensor, n_features: int) -> None:
    """Raise ``ValueError`` unless ``u`` has shape (B, n_features, L) and at least one sample; B may be 0."""
    if u.ndim != 3 or u.shape[1] != n_features:
        raise ValueError(f"expected an input of shape (batch, {n_features}, length), got {tuple(u.shape)}")
    require_samples(u.shape[-1])


def require_norm(name: str) -> None:
    """Raise ``ValueError`` if there is no norm of this name."""
    if name not in NORMS:
        raise ValueError(f"unknown norm {name!r}: expected one of {', '.join(map(repr, NORMS))}")
