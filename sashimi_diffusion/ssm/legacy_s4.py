"""The S4 layer of the oldest official code, in which the published DiffWave-SaShiMi weights were trained.

It differs from :class:`S4Layer` in what is learnt (the output vector and the second low-rank vector alone), in how a
kernel comes from them (at one length only, without the correction for cutting it there) and in how the directions meet.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from sashimi_diffusion.ssm.cache import ParameterCache
from sashimi_diffusion.ssm.convolution import convolve
from sashimi_diffusion.ssm.initialization import initial_system
from sashimi_diffusion.ssm.pointwise import gelu
from sashimi_diffusion.ssm.precision import KeepFloat32, without_autocast
from sashimi_kernels import kernel_lags
from sashimi_kernels.reference.generation import bilinear_nodes

# Terms of the generating function held at once: 4 MB in float64, a few times over.
TILE = 2**19


class Nodes(NamedTuple):
    """Where the generating function is evaluated: for the roots of unity ω, z = 2 (1-ω) / (1+ω) and 2 / (1+ω).

    Complex (directions or 1, K). The root ω = -1 is written as z = weight = 0: infinite, and treated as a limit.
    """

    z: Tensor
    weight: Tensor


class LegacyS4(nn.Module):
    """W · GELU(state space(u)) + b: both directions side by side, mixed by one linear map without a gate.

    Args:
        d_model: number of features H.
        length: length of the kernels, and of the signals they were trained on.
        n_state: state size, even; half of the conjugate pairs is kept.
    """

    def __init__(self, d_model: int, length: int, n_state: int = 64) -> None:
        super().__init__()
        self.ssm = LegacyStateSpace(d_model, length, n_state)
        self.output_linear = nn.Conv1d(2 * d_model, d_model, 1)

    def forward(self, u: Tensor, residual: Tensor | None = None) -> Tensor:
        """(batch, H, L) to (batch, H, L), added to ``residual`` if given."""
        y = self.output_linear(gelu(self.ssm(u)))
        return y if residual is None else y + residual


class LegacyStateSpace(KeepFloat32):
    """Two kernels per feature, y₁[t] = D u[t] + Σ k₁[j] u[t-j] and y₂[t] = D u[t] + Σ k₂[j] u[t+j], j from 0 in both.

    A = Λ - p qᵀ, with Λ, p, B and the steps as they were initialized (buffers) and q, C, D learnt. The kernel is S4's
    generating function on the roots of unity (arXiv 2111.00396, algorithm 1) with C in the place of C (I - Ā^L), so it
    depends on its ``length``; longer signals see zeros beyond it. Everything is stored real (a trailing axis of 2 for
    complex values) and in float32, and stays so under ``.to(dtype)`` and autocast.

    Args:
        d_model: number of features H.
        length: length of the kernels, even.
        n_state: state size, even; N = n_state / 2.

    Raises:
        ValueError: an odd length or state size.
    """

    def __init__(self, d_model: int, length: int, n_state: int = 64) -> None:
        super().__init__()
        if length < 2 or length % 2:
            raise ValueError(f"the kernels of a legacy state space have an even length, got {length}")
        self.d_model, self.length, self.n_state = d_model, length, n_state
        self._nodes: Nodes | None = None
        initial = initial_system("legs", n_state, "nplr")
        a, p, b = (_real(x).expand(2, -1, -1) for x in (initial.a, initial.p, initial.b))
        log_dt = torch.rand(2, d_model) * (math.log(1e-1) - math.log(1e-3)) + math.log(1e-3)
        self.register_buffer("log_dt", log_dt)  # (directions, H)
        self.register_buffer("A", a.clone())  # (directions, N, 2)
        self.register_buffer("B", b.clone())  # (directions, N, 2)
        self.register_buffer("P", p.clone())  # (directions, N, 2)
        self.C = nn.Parameter(torch.randn(2, d_model, n_state // 2, 2) * math.sqrt(0.5))  # (directions, H, N, 2)
        self.Q = nn.Parameter(p.unsqueeze(1).repeat(1, d_model, 1, 1))  # (directions, H, N, 2)
        self.D = nn.Parameter(torch.randn(d_model))  # (H,)
        self._cache = ParameterCache()

    def forward(self, u: Tensor) -> Tensor:
        """Convolve ``u`` (batch, H, L) both ways: (batch, 2 H, L), the causal direction first."""
        if u.ndim != 3 or u.shape[1] != self.d_model:
            raise ValueError(f"expected an input of shape (batch, {self.d_model}, length), got {tuple(u.shape)}")
        # Half precision has no FFT for these sizes, so autocast must not reach the transforms.
        with without_autocast(u.device):
            y = convolve(self, self._cache, u.to(self.D.dtype), lambda: self._lags(u.shape[-1]))  # (batch, 2, H, L)
        return y.flatten(1, 2).to(u.dtype)

    def kernel(self) -> Tensor:
        """The two kernels, real (directions, H, length), without D."""
        nodes = exact_nodes(self.length, self.D.device) if self._nodes is None else self._nodes
        z, weight = (x.to(self.D.device).expand(2, -1) for x in nodes)
        spectra = [self._generating_function(way, Nodes(z[way], weight[way])) for way in range(2)]
        return torch.fft.irfft(torch.stack(spectra), n=self.length).to(self.D.dtype)

    def use_nodes(self, nodes: Nodes | None) -> None:
        """Compute the kernels on ``nodes``, such as the inexact ones of an official checkpoint; None: on exact ones."""
        self._nodes = nodes
        self._cache.clear()

    def train(self, mode: bool = True) -> "LegacyStateSpace":
        """Switching modes frees what evaluation mode keeps."""
        self._cache.clear()
        return super().train(mode)

    def extra_repr(self) -> str:
        return f"{self.d_model}, length={self.length}, n_state={self.n_state}"

    def _lags(self, length: int) -> Tensor:
        """Both directions for signals of ``length``, real (2, H, size)."""
        kernel = self.kernel()[..., :length]
        causal, reverse = F.pad(kernel, (0, length - kernel.shape[-1])).unbind()
        ways = kernel_lags(causal, self.D), kernel_lags(torch.zeros_like(reverse), self.D, reverse, shift=0)
        return torch.stack(ways)

    def _generating_function(self, way: int, nodes: Nodes) -> Tensor:
        """Spectrum of one direction's kernel, complex128 (H, K), in tiles of features: never H · N · K at once."""
        a, b, p = (_complex(x[way]) for x in (self.A, self.B, self.P))  # (N,)
        c, q = _complex(self.C[way]).conj(), _complex(self.Q[way]).conj()  # (H, N)
        dt = torch.exp(self.log_dt[way].double()).unsqueeze(-1)  # (H, 1)
        vectors = torch.stack([b * c, b * q, p * q, p * c], dim=-1)  # (H, N, 4)
        features = max(1, TILE // (self.n_state // 2 * nodes.z.shape[-1]))
        tiles = zip(dt.split(features), (dt * a).split(features), vectors.split(features), strict=True)
        options = {"use_reentrant": False, "preserve_rng_state": False}
        return torch.cat([checkpoint(_woodbury, *tile, nodes, **options) for tile in tiles])


def exact_nodes(length: int, device: torch.device | str = "cpu") -> Nodes:
    """The nodes of a kernel of ``length`` samples (even), complex128 (1, length // 2 + 1): z = 2i tan(πk / length)."""
    return Nodes(*(x.unsqueeze(0) for x in bilinear_nodes(length, device)))


def _woodbury(dt: Tensor, poles: Tensor, vectors: Tensor, nodes: Nodes) -> Tensor:
    """S4's equation for the resolvent of a diagonal plus a matrix of rank one (arXiv 2111.00396, lemma C.2): (H, K).

    ``vectors`` (H, N, 4) holds the products b c, b q, p q and p c. Each is summed over x / (z - pole) and its conjugate
    partner, 2 (z Re x - Re(x pole*)) / (z² - 2 z Re pole + |pole|²) together: matrix products of real numbers, several
    times faster than complex divisions. The denominator cancels where z is near a pole, so this wants float64.
    """
    z, one, zero = nodes.z, torch.ones_like(nodes.z.real), torch.zeros_like(nodes.z.real)
    powers = torch.stack([(z * z).real, z.real, one, (z * z).imag, z.imag, zero], dim=-1).unflatten(-1, (2, 3))
    factors = torch.stack([torch.ones_like(poles.real), -2 * poles.real, poles.abs().square()], dim=1)  # (H, 3, N)
    re, im = powers[:, 0] @ factors, powers[:, 1] @ factors  # (H, K, N)
    scale = 1 / (re * re + im * im)
    weights = torch.cat([vectors.real, (vectors * poles.conj().unsqueeze(-1)).real], dim=-1)  # (H, N, 8)
    sums = torch.complex((re * scale) @ weights, (im * -scale) @ weights)  # (H, K, 8)
    slope, constant = sums.chunk(2, dim=-1)
    b_c, b_q, p_q, p_c = (2 * dt.unsqueeze(-1) * (z.unsqueeze(-1) * slope - constant)).unbind(-1)
    finite = nodes.weight * (b_c - b_q * p_c / (1 + p_q))
    # At ω = -1 all that is left of it is this limit.
    limit = dt * vectors[..., 0].sum(1, keepdim=True).real
    return torch.where(nodes.weight == 0, limit.to(finite.dtype), finite)


def _complex(x: Tensor) -> Tensor:
    return torch.view_as_complex(x.double())


def _real(x: Tensor) -> Tensor:
    return torch.view_as_real(x.resolve_conj()).float()
