"""Kernel of a normal-plus-low-rank state space by S4's generating function (arXiv 2111.00396, algorithm 1) in float32.

With z = 2 (1-ω)/(1+ω) = 2i tan(πk/L) at the L-th roots of unity ω, A = diag(a) - p qᵀ and the Cauchy sums
S(x, y) = Σ dt x y / (z - dt a) over both halves of the conjugate pairs,

    K̂(ω) = 2/(1+ω) · (S(b, C̃) - S(b, q) S(p, C̃) / (1 + S(p, q))),        C̃ = C (I - Ā^L).

C̃ is a small tensor and computed in float64, because in float32 Ā^L would accumulate L rounding errors. The response to
a state x, C Ā^(l+1) x, is the kernel with Ā x in place of B̄ = (I - dt/2 A)⁻¹ dt b. This is the kernel of the input
vector (I/dt + A/2) x in place of b.

Errors relative to float64, for HiPPO-LegS with 64 states, dt from 1e-3 to 1e-1 and kernels of 1,000 and 16,000 samples:
kernels are within 1e-6 of their maximum and gradients within 5e-6, except the gradient of dt, which is within 5e-5
(1,000 samples) and 2e-4 (16,000 samples). It is the sum of the derivatives at all frequencies, which mostly cancel, and
near the eigenvalues of diag(a) the two terms of K̂ cancel as well.
"""

import math

import torch
from torch import Tensor

from sashimi_kernels.reference.generation import truncated_output
from sashimi_kernels.triton_backend.cauchy import cauchy_sums


def nplr_kernel(
    dt: Tensor, a: Tensor, p: Tensor, q: Tensor, b: Tensor, c: Tensor, length: int, state: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Compute the Cauchy sums of all pairs of input and output vectors, combine their spectra and invert them."""
    dt = dt.double()
    a, p, q, b, c = (x.to(torch.complex128) for x in (a, p, q, b, c))
    inputs = b.unsqueeze(0)
    if state is not None:
        inputs = torch.cat([inputs, _equivalent_inputs(dt, a, p, q, state.to(a.dtype))])
    inputs = torch.cat([inputs, p.unsqueeze(0)])  # (1 + B + 1, H, N)
    outputs = torch.cat([truncated_output(dt, a, p, q, b, c, length), q.unsqueeze(0)])  # (M + 1, H, N)
    vectors = dt * inputs.unsqueeze(1) * outputs  # (1 + B + 1, M + 1, H, N)
    samples = torch.fft.irfft(_spectrum(vectors, dt * a, length), n=length)  # (1 + B, M, H, L)
    return samples[0], None if state is None else samples[1:]


def _spectrum(vectors: Tensor, poles: Tensor, length: int) -> Tensor:
    """Return K̂ at the first L // 2 + 1 roots of unity, complex64 (1 + B, M, H, L // 2 + 1)."""
    k = torch.arange((length + 1) // 2, device=poles.device, dtype=torch.float64)
    y = 2 * torch.tan(math.pi / length * k)
    rows = torch.view_as_real(vectors.flatten(0, 1).to(torch.complex64).resolve_conj())
    sums = cauchy_sums(rows, torch.view_as_real(poles.resolve_conj()), y)
    sums = torch.view_as_complex(sums).unflatten(0, vectors.shape[:2])  # (1 + B + 1, M + 1, H, K)
    # The last row belongs to p, the last column to q.
    b_c, b_q, p_c, p_q = sums[:-1, :-1], sums[:-1, -1:], sums[-1:, :-1], sums[-1:, -1:]
    weight = torch.complex(torch.ones_like(y), y / 2).to(sums.dtype)  # 2/(1+ω) = 1 + z/2
    spectrum = weight * (b_c - b_q * p_c / (1 + p_q))
    if length % 2 == 0:
        # At ω = -1, z is infinite: the product of weight and sums has this limit, and the low-rank term vanishes.
        limit = vectors[:-1, :-1].real.sum(-1, keepdim=True).to(sums.dtype)
        spectrum = torch.cat([spectrum, limit], dim=-1)
    return spectrum


def _equivalent_inputs(dt: Tensor, a: Tensor, p: Tensor, q: Tensor, state: Tensor) -> Tensor:
    """Return the input vectors, (B, H, N), whose kernels are the responses to ``state``, (B, H, N)."""
    a_x = a * state - p * 2 * (q * state).real.sum(-1, keepdim=True)
    return state / dt + a_x / 2
