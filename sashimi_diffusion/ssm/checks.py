"""Checks of the arguments that the state spaces share."""

from torch import Tensor

from sashimi_kernels.shapes import require_samples


def require_sequence(u: Tensor, d_model: int) -> None:
    """Raise ValueError unless ``u`` has shape (B, d_model, L) with at least one sample. An empty batch is allowed."""
    if u.ndim != 3 or u.shape[1] != d_model:
        raise ValueError(f"expected an input of shape (batch, {d_model}, length), got {tuple(u.shape)}")
    require_samples(u.shape[-1])


def require_rate(rate: float) -> None:
    """Raise ValueError unless ``rate``, a factor of the step sizes, is positive."""
    if not rate > 0:
        raise ValueError(f"rate must be positive, got {rate}")
