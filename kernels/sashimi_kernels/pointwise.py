"""Linear maps at every position, fused with what surrounds them: GELU, gate, norm and residual.

The Triton backend runs ``gated_linear`` and ``feed_forward`` as one kernel each, in which all channels of a tile of
positions stay on the chip. The kernels need numbers of channels that are multiples of 16, and up to

- 256 channels of ``x`` in half precision on GPUs of compute capability 9.0 and later,
- 128 channels in half precision on other GPUs except RDNA,
- 64 channels in float32 on GPUs of compute capability 9.0 and later.

In all other cases a blocked matrix product for any number of channels runs, with the same operations around it:
``gated_linear`` is one launch, ``feed_forward`` is the kernel of its norm and one launch per map. The Triton backend
computes in the dtype of ``x``, also under autocast, and rounds parameters to it inside the kernels.
"""

from torch import Tensor

from sashimi_kernels.backends import select_backend
from sashimi_kernels.shapes import require_norm, require_samples, require_shape
from sashimi_kernels.torch_backend.pointwise import pointwise as torch_pointwise


def pointwise(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Map the channels at every position: weight · x + bias, in PyTorch on every device.

    Under autocast, the product is computed in the dtype of autocast.

    Args:
        x: real (B, K, L).
        weight: real (O, K).
        bias: real (O,).

    Returns:
        real (B, O, L). On a CPU the channels of a position are adjacent in memory, on other devices it is contiguous.

    Raises:
        ValueError: the shapes do not match.
    """
    require_shape("weight", weight, weight.shape[0], x.shape[1])
    require_shape("bias", bias, weight.shape[0])
    return torch_pointwise(x, weight, bias)


def gated_linear(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None = None, backend: str = "auto"
) -> Tensor:
    """Mix the channels of GELU(x), apply a gated linear unit and add a residual: residual + a · sigmoid(b).

    a and b are the first and second half of the channels of weight · GELU(x) + bias, with the exact GELU. This is the
    output of an S4 layer (arXiv 2111.00396, and arXiv 2202.09729, section 3).

    If no gradient is recorded, the torch backend overwrites ``x``, so ``x`` must not be used afterwards.

    Args:
        x: real (B, K, L).
        weight: real (2H, K).
        bias: real (2H,).
        residual: real (B, H, L), or None.
        backend: "auto", "torch", "triton" or "reference".

    Returns:
        real (B, H, L) in the dtype of ``residual``, or else of the product.

    Raises:
        BackendUnavailableError: the backend cannot run.
        ValueError: the shapes do not match, or L is 0.
    """
    batch, n_inputs, length = x.shape
    require_samples(length)
    n_outputs = weight.shape[0] // 2
    require_shape("weight", weight, 2 * n_outputs, n_inputs)
    require_shape("bias", bias, 2 * n_outputs)
    if residual is not None:
        require_shape("residual", residual, batch, n_outputs, length)
    module = select_backend(backend, x.device, "gated_linear", x.dtype, length, batch)
    return module.gated_linear(x, weight, bias, residual)


def feed_forward(
    x: Tensor,
    norm: str,
    norm_weight: Tensor,
    norm_offset: Tensor,
    epsilon: float,
    input_weight: Tensor,
    input_bias: Tensor,
    output_weight: Tensor,
    output_bias: Tensor,
    skip: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Apply a residual feed-forward layer at every position: x + W₂ GELU(W₁ norm(x) + b₁) + b₂ + skip.

    The layer of SaShiMi (arXiv 2202.09729, section 3), with the exact GELU. The norm is that of
    :func:`sashimi_kernels.scalar_norm` or :func:`sashimi_kernels.layer_norm`, without its bias. ``skip`` is the skip
    connection of a U-Net that ends after the layer.

    Args:
        x: real (B, H, L).
        norm: "scalar" or "layer".
        norm_weight: gain of the scalar norm, real (1,), or weight of the layer norm, real (H,).
        norm_offset: shift of the scalar norm, real (1,), or offset of the layer norm, real (H,).
        epsilon: added to the variance.
        input_weight, input_bias: W₁, real (F, H), and b₁, real (F,).
        output_weight, output_bias: W₂, real (H, F), and b₂, real (H,).
        skip: real (B, H, L) in the dtype of ``x``, or None.
        backend: "auto", "torch", "triton" or "reference".

    Returns:
        real (B, H, L) in the dtype of ``x``.

    Raises:
        BackendUnavailableError: the backend cannot run.
        ValueError: the shapes do not match, the norm is unknown, or L is 0.
    """
    n_channels, n_inner = x.shape[1], input_weight.shape[0]
    require_samples(x.shape[-1])
    require_norm(norm)
    n_parameters = 1 if norm == "scalar" else n_channels
    require_shape("norm_weight", norm_weight, n_parameters)
    require_shape("norm_offset", norm_offset, n_parameters)
    require_shape("input_weight", input_weight, n_inner, n_channels)
    require_shape("input_bias", input_bias, n_inner)
    require_shape("output_weight", output_weight, n_channels, n_inner)
    require_shape("output_bias", output_bias, n_channels)
    if skip is not None:
        require_shape("skip", skip, *x.shape)
    module = select_backend(backend, x.device, "feed_forward", x.dtype, x.shape[-1], x.shape[0])
    return module.feed_forward(
        x,
        norm,
        norm_weight,
        norm_offset,
        epsilon,
        input_weight,
        input_bias,
        output_weight,
        output_bias,
        skip,
    )
