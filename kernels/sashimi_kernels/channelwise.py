"""Channel norms and the gated residual: operations around the convolution that are bound by memory traffic."""

from torch import Tensor

from sashimi_kernels.backends import backend_name, select_backend
from sashimi_kernels.shapes import require_norm, require_samples, require_shape


def scalar_norm(
    x: Tensor, gain: Tensor, shift: Tensor, bias: Tensor | None = None, epsilon: float = 1e-8, backend: str = "auto"
) -> Tensor:
    """Normalize over the channels with one gain and one shift for all of them, then add a bias per channel.

    y = gain · (x - mean + shift) / √(variance + epsilon) + bias, with the biased variance. This is the norm of the
    official SaShiMi code, followed by the bias that conditions a layer on the diffusion step.

    Outputs and gradients are finite for every ``epsilon`` down to 1e-30, even if all channels are equal. In that case
    the gradient of ``x`` is as large as 1 / √epsilon.

    Args:
        x: real (B, H, L). Statistics are computed in float32 or float64.
        gain, shift: real (1,).
        bias: real (B, H), or None.
        epsilon: added to the variance.
        backend: "auto", "torch", "triton" or "reference".

    Returns:
        real (B, H, L) in the dtype of ``x``.

    Raises:
        BackendUnavailableError: the backend cannot run.
        ValueError: the shapes do not match, or L is 0.
    """
    _require_signal(x, bias)
    require_shape("gain", gain, 1)
    require_shape("shift", shift, 1)
    module = select_backend(backend, x.device, "scalar_norm", x.dtype, x.shape[-1], x.shape[0])
    return module.scalar_norm(x, gain, shift, bias, epsilon)


def layer_norm(
    x: Tensor, weight: Tensor, offset: Tensor, bias: Tensor | None = None, epsilon: float = 1e-5, backend: str = "auto"
) -> Tensor:
    """Normalize over the channels with a weight and an offset per channel, then add a bias per channel.

    y = weight · (x - mean) / √(variance + epsilon) + offset + bias, with the biased variance.

    Args:
        x: real (B, H, L). Statistics are computed in float32 or float64.
        weight, offset: real (H,).
        bias: real (B, H), or None.
        epsilon: added to the variance.
        backend: "auto", "torch", "triton" or "reference".

    Returns:
        real (B, H, L) in the dtype of ``x``.

    Raises:
        BackendUnavailableError: the backend cannot run.
        ValueError: the shapes do not match, or L is 0.
    """
    _require_signal(x, bias)
    require_shape("weight", weight, x.shape[1])
    require_shape("offset", offset, x.shape[1])
    module = select_backend(backend, x.device, "layer_norm", x.dtype, x.shape[-1], x.shape[0])
    return module.layer_norm(x, weight, offset, bias, epsilon)


def norm_and_residual(
    x: Tensor,
    norm: str,
    weight: Tensor,
    offset: Tensor,
    bias: Tensor | None = None,
    epsilon: float = 1e-8,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Return the norm of ``x``, and ``x`` for a residual connection around what follows the norm.

    The result is that of :func:`scalar_norm` or :func:`layer_norm` and ``x`` itself. If the second output is used in
    the place of ``x``, the backward pass of "triton" adds both gradients in the kernel of the norm.

    Args:
        x: real (B, H, L).
        norm: "scalar" or "layer".
        weight: gain of the scalar norm, real (1,), or weight of the layer norm, real (H,).
        offset: shift of the scalar norm, real (1,), or offset of the layer norm, real (H,).
        bias, epsilon, backend: see :func:`scalar_norm`.

    Raises:
        BackendUnavailableError: the backend cannot run.
        ValueError: the norm is unknown, the shapes do not match, or L is 0.
    """
    batch, n_channels, length = x.shape
    _require_signal(x, bias)
    require_norm(norm)
    for name, parameter in (("weight", weight), ("offset", offset)):
        require_shape(name, parameter, 1 if norm == "scalar" else n_channels)
    name = backend_name(backend, x.device, f"{norm}_norm", x.dtype, length, batch)
    if name == "triton":
        from sashimi_kernels.triton_backend.norm_and_residual import norm_and_residual as fused

        return fused(x, norm, weight, offset, bias, epsilon)
    return (scalar_norm if norm == "scalar" else layer_norm)(x, weight, offset, bias, epsilon, name), x


def gated_residual(x: Tensor, residual: Tensor, backend: str = "auto") -> Tensor:
    """Apply a gated linear unit and add the result to a residual: residual + a · sigmoid(b).

    a and b are the first and second half of the channels of ``x``.

    Args:
        x: real (B, 2H, L).
        residual: real (B, H, L).
        backend: "auto", "torch", "triton" or "reference".

    Returns:
        real (B, H, L) in the dtype of ``residual``.

    Raises:
        BackendUnavailableError: the backend cannot run.
        ValueError: the shapes do not match, or L is 0.
    """
    batch, n_channels, length = residual.shape
    require_shape("x", x, batch, 2 * n_channels, length)
    require_samples(length)
    module = select_backend(backend, x.device, "gated_residual", x.dtype, length, batch)
    return module.gated_residual(x, residual)


def _require_signal(x: Tensor, bias: Tensor | None) -> None:
    batch, n_channels, length = x.shape
    require_samples(length)
    if bias is not None:
        require_shape("bias", bias, batch, n_channels)
