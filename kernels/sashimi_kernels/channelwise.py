"""What surrounds the convolution in a block and costs memory traffic only. Each hands on to the selected backend."""

from torch import Tensor

from sashimi_kernels.backends import select_backend
from sashimi_kernels.shapes import require_shape


def scalar_norm(
    x: Tensor, gain: Tensor, shift: Tensor, bias: Tensor | None = None, epsilon: float = 1e-8, backend: str = "auto"
) -> Tensor:
    """Normalize over the channels with one gain and one shift in all, then add a bias that is constant in time.

    y = gain · (x - mean + shift) / √(variance + epsilon) + bias, with the biased variance: the norm of the official
    SaShiMi code, and the diffusion-step bias that follows it.

    Args:
        x: real (batch, H, L). Statistics are taken in float32 at least.
        gain, shift: real (1,).
        bias: real (batch, H), or None.
        epsilon: added to the variance.
        backend: "auto", "torch", "triton" or "reference".

    Returns:
        real (batch, H, L) in the dtype of ``x``.

    Raises:
        BackendUnavailableError: the backend cannot run.
        ValueError: the shapes do not fit each other.
    """
    _require_bias(x, bias)
    require_shape("gain", gain, 1)
    require_shape("shift", shift, 1)
    module = select_backend(backend, x.device, "scalar_norm", x.dtype, x.shape[-1])
    return module.scalar_norm(x, gain, shift, bias, epsilon)


def layer_norm(
    x: Tensor, weight: Tensor, offset: Tensor, bias: Tensor | None = None, epsilon: float = 1e-5, backend: str = "auto"
) -> Tensor:
    """Normalize over the channels with a weight and an offset for each, then add a bias that is constant in time.

    y = weight · (x - mean) / √(variance + epsilon) + offset + bias, with ``weight`` and ``offset`` real (H,).
    Everything else is as in :func:`scalar_norm`.
    """
    _require_bias(x, bias)
    require_shape("weight", weight, x.shape[1])
    require_shape("offset", offset, x.shape[1])
    module = select_backend(backend, x.device, "layer_norm", x.dtype, x.shape[-1])
    return module.layer_norm(x, weight, offset, bias, epsilon)


def gated_residual(x: Tensor, residual: Tensor, backend: str = "auto") -> Tensor:
    """residual + a · sigmoid(b), where a and b are the first and second half of the channels of ``x`` (a GLU).

    Args:
        x: real (batch, 2H, L).
        residual: real (batch, H, L).
        backend: "auto", "torch", "triton" or "reference".

    Returns:
        real (batch, H, L) in the dtype of ``residual``.

    Raises:
        BackendUnavailableError: the backend cannot run.
        ValueError: the shapes do not fit each other.
    """
    batch, n_channels, length = residual.shape
    require_shape("x", x, batch, 2 * n_channels, length)
    module = select_backend(backend, x.device, "gated_residual", x.dtype, x.shape[-1])
    return module.gated_residual(x, residual)


def _require_bias(x: Tensor, bias: Tensor | None) -> None:
    batch, n_channels, _ = x.shape
    if bias is not None:
        require_shape("bias", bias, batch, n_channels)
