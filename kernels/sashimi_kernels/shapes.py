"""The check that keeps kernels inside their tensors."""

from torch import Tensor


def require_shape(name: str, x: Tensor, *shape: int) -> None:
    """Refuse an argument of another shape: the Triton kernels trust the sizes they are given.

    Raises:
        ValueError: says which argument, and both shapes.
    """
    if x.shape != shape:
        raise ValueError(f"expected {name} of shape {shape}, got {tuple(x.shape)}")
