"""Reference implementations of convolution kernels and final states."""

import math

import torch
from torch import Tensor

from sashimi_kernels.discretization import (
    DiscreteDiagonal,
    discretize_nplr,
    real_matrix,
    real_output,
    real_vector,
)


def diagonal_kernel(log_a: Tensor, coefficients: Tensor, length: int) -> Tensor:
    """Evaluate the Vandermonde product with all H·N·L exponentials (S4D, arXiv 2206.11893, equation 7)."""
    positions = torch.arange(length, device=log_a.device, dtype=log_a.real.dtype)
    powers = torch.exp(log_a.unsqueeze(-1) * positions).to(coefficients.dtype)  # (H, N, L)
    return 2 * torch.einsum("mhn,hnl->mhl", coefficients, powers).real


def nplr_kernel(
    dt: Tensor, a: Tensor, p: Tensor, q: Tensor, b: Tensor, c: Tensor, length: int, state: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Evaluate the generating function at the roots of unity by Cauchy sums (S4, arXiv 2111.00396, algorithm 1)."""
    c_truncated = truncated_output(dt, a, p, q, b, c, length)
    response = None if state is None else _free_response(dt, a, p, q, b, c, length, state)
    a, p, q, b = (x.to(c.dtype) for x in (a, p, q, b))
    return cauchy_kernel(dt.to(c.real.dtype), a, p, q, b, c_truncated, length), response


def truncated_output(dt: Tensor, a: Tensor, p: Tensor, q: Tensor, b: Tensor, c: Tensor, length: int) -> Tensor:
    """Return C (I - Ā^L), complex (M, H, N). It replaces C in the generating function of a kernel of L samples."""
    matrix = real_matrix(discretize_nplr(*(x.to(_double(x)) for x in (dt, a, p, q, b))))  # (H, 2N, 2N)
    row = real_output(c).to(matrix.dtype).unsqueeze(-2)  # (M, H, 1, 2N)
    row = (row - row @ torch.linalg.matrix_power(matrix, length)).squeeze(-2)
    real, imag = row.chunk(2, dim=-1)
    return torch.complex(real / 2, -imag / 2).to(c.dtype)


def cauchy_kernel(dt: Tensor, a: Tensor, p: Tensor, q: Tensor, b: Tensor, c_truncated: Tensor, length: int) -> Tensor:
    """Return the kernel from C (I - Ā^L): evaluate its spectrum at the L-th roots of unity and invert it."""
    z, weight = (x.to(a.dtype) for x in bilinear_nodes(length, a.device))

    def cauchy(x: Tensor, y: Tensor) -> Tensor:
        """Return Σ x y / (z - dt a) over both halves of the conjugate pairs, for all nodes: (..., H, nodes)."""
        product, pole = (x * y).unsqueeze(-1), (dt * a).unsqueeze(-1)
        return dt * (product / (z - pole) + product.conj() / (z - pole.conj())).sum(-2)

    b_c, q_c = cauchy(b, c_truncated), cauchy(p, c_truncated)
    spectrum = weight * (b_c - cauchy(b, q) * q_c / (1 + cauchy(p, q)))
    if length % 2 == 0:
        # At ω = -1, z is infinite: the product of weight and sums has this limit, and the low-rank term vanishes.
        spectrum = torch.cat([spectrum[..., :-1], dt * (b * c_truncated).real.sum(-1, keepdim=True) + 0j], dim=-1)
    return torch.fft.irfft(spectrum, n=length)


def bilinear_nodes(length: int, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Return the images of the L-th roots of unity ω = exp(-2πi k/L), k = 0 … L/2, under the bilinear rule.

    They are computed in float64, because an error of a node is an error of frequency, which grows along the kernel.

    Returns:
        z = 2 (1-ω)/(1+ω) = 2i tan(πk/L) and the weight 2/(1+ω) = 1 + z/2, complex128 (L // 2 + 1,). For even L both
        would be infinite at the last root ω = -1. They are set to 0 there, and the caller inserts the limit.
    """
    k = torch.arange(length // 2 + 1, device=device, dtype=torch.float64)
    z = 2j * torch.tan(math.pi * k / length)
    weight = 1 + z / 2
    if length % 2 == 0:
        z[-1], weight[-1] = 0, 0
    return z, weight


def diagonal_state(system: DiscreteDiagonal, u: Tensor, state: Tensor | None = None) -> Tensor:
    """Run the recurrence sample by sample."""
    a = torch.exp(system.log_a)
    x = torch.zeros(u.shape[0], *a.shape, dtype=a.dtype, device=u.device) if state is None else state.to(a.dtype)
    for sample in u.unbind(-1):
        x = a * x + system.b * sample.unsqueeze(-1)
    return x


def nplr_state(
    dt: Tensor, a: Tensor, p: Tensor, q: Tensor, b: Tensor, u: Tensor, state: Tensor | None = None
) -> Tensor:
    """Run the recurrence sample by sample in its rank-one form, O(N) per sample."""
    system = discretize_nplr(dt, a, p, q, b)
    x = torch.zeros(u.shape[0], *a.shape, dtype=a.dtype, device=u.device) if state is None else state.to(a.dtype)
    for sample in u.unbind(-1):
        x = system.a * x - system.u * 2 * (system.v * x).real.sum(-1, keepdim=True) + system.b * sample.unsqueeze(-1)
    return x


def _free_response(
    dt: Tensor, a: Tensor, p: Tensor, q: Tensor, b: Tensor, c: Tensor, length: int, state: Tensor
) -> Tensor:
    """Return C Ā^(l+1) x for states x (B, H, N): (B, M, H, L)."""
    matrix = real_matrix(discretize_nplr(dt, a, p, q, b))  # (H, 2N, 2N)
    x, rows, outputs = real_vector(state).to(matrix.dtype), real_output(c).to(matrix.dtype), []
    for _ in range(length):
        x = (matrix @ x.unsqueeze(-1)).squeeze(-1)  # (B, H, 2N)
        outputs.append(torch.einsum("mhn,bhn->bmh", rows, x))
    return torch.stack(outputs, dim=-1)


def _double(x: Tensor) -> torch.dtype:
    return torch.complex128 if x.is_complex() else torch.float64
