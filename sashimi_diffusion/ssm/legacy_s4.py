"""The S4 layer of the oldest official code, which the published DiffWave-SaShiMi weights use.

It differs from :class:`S4Layer` in three ways. Only the output vector C, the second low-rank vector q and D are
trained. The kernel is defined for one length and lacks the factor I - Ā^L that corrects the truncation. Both directions
are concatenated and mixed without a gate.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from sashimi_diffusion.ssm.cache import Cached
from sashimi_diffusion.ssm.initialization import initial_system
from sashimi_diffusion.ssm.precision import KeepFloat32, without_autocast
from sashimi_kernels import kernel_lags, lags_spectrum, long_convolution, spectrum_convolution
from sashimi_kernels.reference.generation import bilinear_nodes
from sashimi_kernels.shapes import require_sequence
from sashimi_kernels.torch_backend.pointwise import gelu

# Number of terms of the generating function computed at once: several arrays of 4 MB in float64.
TILE = 2**19


class Nodes(NamedTuple):
    """Points at which the generating function is evaluated: z = 2 (1-ω) / (1+ω) and 2 / (1+ω) for roots of unity ω.

    Complex128 (directions or 1, K), where K = length // 2 + 1 is the number of frequencies. Both are infinite at
    ω = -1. There they are set to 0, and the limit of the generating function is used instead.
    """

    z: Tensor
    weight: Tensor


class LegacyS4(nn.Module):
    """W · GELU(state space(u)) + b, a layer that concatenates both directions and mixes them without a gate.

    Args:
        d_model: number of features H.
        length, n_state, stored_nodes: see :class:`LegacyStateSpace`.
    """

    def __init__(self, d_model: int, length: int, n_state: int = 64, stored_nodes: bool = False) -> None:
        super().__init__()
        self.ssm = LegacyStateSpace(d_model, length, n_state, stored_nodes)
        self.output_linear = nn.Conv1d(2 * d_model, d_model, 1)

    def forward(self, u: Tensor, residual: Tensor | None = None, operator: None = None) -> Tensor:
        """Apply the layer to a sequence (B, H, L), add ``residual`` (B, H, L) if given, and return (B, H, L).

        ``operator`` is always None: the layer computes its own kernels.
        """
        y = self.output_linear(gelu(self.ssm(u)))
        return y if residual is None else y + residual


class LegacyStateSpace(KeepFloat32, Cached):
    """A causal and an anti-causal convolution of each feature, each with its own output.

    y₁[t] = D u[t] + Σ_j k₁[j] u[t-j] and y₂[t] = D u[t] + Σ_j k₂[j] u[t+j], with j from 0 in both.

    A = Λ - p qᵀ, where Λ, p, B and the step sizes keep their initial values (buffers) and q, C, D are trained. The
    kernel is the inverse FFT of S4's generating function at the roots of unity (arXiv 2111.00396, algorithm 1), with C
    in the place of C (I - Ā^L). It therefore depends on ``length``; for longer signals it is zero beyond that length.
    All tensors are real float32 (a trailing axis of 2 for complex values) and stay float32 under ``.to(dtype)`` and
    autocast.

    Args:
        d_model: number of features H.
        length: length of the kernels, and of the training signals; even.
        n_state: state size, even; N = n_state / 2.
        stored_nodes: evaluate the generating function at nodes saved with the model (buffers ``omega`` and ``z``)
            instead of the exact ones. The official code computes its nodes in single precision and saves them; the same
            nodes reproduce its results.

    Raises:
        ValueError: an odd length or state size.
    """

    log_dt: Tensor
    A: Tensor
    B: Tensor
    P: Tensor
    omega: Tensor | None
    z: Tensor | None

    def __init__(self, d_model: int, length: int, n_state: int = 64, stored_nodes: bool = False) -> None:
        super().__init__()
        if length < 2 or length % 2:
            raise ValueError(f"the kernels of a legacy state space have an even length, got {length}")
        self.d_model, self.length, self.n_state = d_model, length, n_state
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
        omega, z = _initial_nodes(length) if stored_nodes else (None, None)
        self.register_buffer("omega", omega)  # (directions, length // 2 + 1, 2)
        self.register_buffer("z", z)  # (directions, length // 2 + 1, 2)

    def forward(self, u: Tensor) -> Tensor:
        """Convolve ``u`` (B, H, L) in both directions: (B, 2 H, L), the causal direction first.

        Raises:
            ValueError: the input has another shape or no samples.
        """
        require_sequence(u, self.d_model)
        signal = u.to(self.D.dtype).unsqueeze(1)  # (B, 1, H, L)
        # Half precision has no FFT for these sizes, so autocast must not reach the transforms.
        with without_autocast(u.device):
            if self.training or torch.is_grad_enabled():
                y = long_convolution(signal, self._lags(u.shape[-1]))  # (B, 2, H, L)
            else:
                y = spectrum_convolution(signal, self._spectrum(u.shape[-1]))
        return y.flatten(1, 2).to(u.dtype)

    def kernel(self) -> Tensor:
        """Return the two kernels without D, real (directions, H, length), the causal one first."""
        z, weight = (x.expand(2, -1) for x in self.nodes())
        spectra = [self._generating_function(index, Nodes(z[index], weight[index])) for index in range(2)]
        return torch.fft.irfft(torch.stack(spectra), n=self.length).to(self.D.dtype)

    def nodes(self) -> Nodes:
        """Return the nodes of the kernels: the stored ones if the model has them, otherwise exact ones."""
        if self.omega is None or self.z is None:
            return exact_nodes(self.length, self.D.device)
        omega, z = _complex(self.omega), _complex(self.z)
        infinite = omega == -1
        return Nodes(z.masked_fill(infinite, 0), (2 / (1 + omega)).masked_fill(infinite, 0))

    def extra_repr(self) -> str:
        return f"{self.d_model}, length={self.length}, n_state={self.n_state}, stored_nodes={self.omega is not None}"

    def _spectrum(self, length: int) -> Tensor:
        """Return the spectrum of the kernels."""
        return self.cache.get(self, "spectrum", length, lambda: lags_spectrum(self._lags(length)))

    def _lags(self, length: int) -> Tensor:
        """Return kernels and D for L = ``length``, arranged by :func:`kernel_lags`, real (directions, H, size)."""
        kernel = self.kernel()[..., :length]
        causal, reverse = F.pad(kernel, (0, length - kernel.shape[-1])).unbind()
        causal_lags = kernel_lags(causal, self.D)
        reverse_lags = kernel_lags(torch.zeros_like(reverse), self.D, reverse, shift=0)
        return torch.stack([causal_lags, reverse_lags])

    def _generating_function(self, direction: int, nodes: Nodes) -> Tensor:
        """Return the spectrum of one direction's kernel at its nodes (K,), complex128 (H, K).

        It is computed in tiles of features, because all H · N · K terms together would need too much memory.
        """
        a, b, p = (_complex(x[direction]) for x in (self.A, self.B, self.P))  # (N,)
        c, q = _complex(self.C[direction]).conj(), _complex(self.Q[direction]).conj()  # (H, N)
        dt = torch.exp(self.log_dt[direction].double()).unsqueeze(-1)  # (H, 1)
        vectors = torch.stack([b * c, b * q, p * q, p * c], dim=-1)  # (H, N, 4)
        features = max(1, TILE // (self.n_state // 2 * nodes.z.shape[-1]))
        tiles = zip(dt.split(features), (dt * a).split(features), vectors.split(features), strict=True)
        return torch.cat(
            [checkpoint(_woodbury, *tile, nodes, use_reentrant=False, preserve_rng_state=False) for tile in tiles]
        )


def exact_nodes(length: int, device: torch.device | str = "cpu") -> Nodes:
    """Return the nodes for a kernel of ``length`` samples (even), complex128 (1, length // 2 + 1)."""
    z, weight = bilinear_nodes(length, device)  # z = 2i tan(πk / length)
    return Nodes(z.unsqueeze(0), weight.unsqueeze(0))


def _initial_nodes(length: int) -> tuple[Tensor, Tensor]:
    """Return the initial values of ``omega`` and ``z``: the exact nodes in single precision."""
    omega = torch.exp(-2j * math.pi / length * torch.arange(length // 2 + 1, dtype=torch.float64, device="cpu"))
    omega[-1] = -1
    omega, z = (_real(x).repeat(2, 1, 1) for x in (omega, exact_nodes(length).z.squeeze(0)))
    return omega, z


def _woodbury(dt: Tensor, poles: Tensor, vectors: Tensor, nodes: Nodes) -> Tensor:
    """Return the generating function of a diagonal plus rank-one system, (H, K) (arXiv 2111.00396, lemma C.2).

    It combines four Cauchy sums Σ_n v_n / (z - pole_n), where v is one of the products b c, b q, p q and p c. A term
    and its conjugate together are 2 (z Re v - Re(v pole*)) / (z² - 2 z Re pole + |pole|²). In this form the sums are
    matrix products of real numbers, several times faster than complex divisions. The denominator cancels where z is
    close to a pole, so float64 is needed.

    Args:
        dt: step sizes, (H, 1).
        poles: dt · a, (H, N).
        vectors: the four products, (H, N, 4).
        nodes: (K,).
    """
    z, one, zero = nodes.z, torch.ones_like(nodes.z.real), torch.zeros_like(nodes.z.real)
    powers = torch.stack([(z * z).real, z.real, one, (z * z).imag, z.imag, zero], dim=-1).unflatten(-1, (2, 3))
    factors = torch.stack([torch.ones_like(poles.real), -2 * poles.real, poles.abs().square()], dim=1)  # (H, 3, N)
    real, imag = powers[:, 0] @ factors, powers[:, 1] @ factors  # of the denominators, (H, K, N)
    scale = 1 / (real * real + imag * imag)
    weights = torch.cat([vectors.real, (vectors * poles.conj().unsqueeze(-1)).real], dim=-1)  # (H, N, 8)
    sums = torch.complex((real * scale) @ weights, (imag * -scale) @ weights)  # (H, K, 8)
    slope, constant = sums.chunk(2, dim=-1)
    b_c, b_q, p_q, p_c = (2 * dt.unsqueeze(-1) * (z.unsqueeze(-1) * slope - constant)).unbind(-1)
    finite = nodes.weight * (b_c - b_q * p_c / (1 + p_q))
    # The limit at ω = -1, where the weight was set to 0.
    limit = dt * vectors[..., 0].sum(1, keepdim=True).real
    return torch.where(nodes.weight == 0, limit.to(finite.dtype), finite)


def _complex(x: Tensor) -> Tensor:
    return torch.view_as_complex(x.double())


def _real(x: Tensor) -> Tensor:
    """Return complex ``x`` as real float32 with a trailing axis of 2, on the default device."""
    return torch.view_as_real(x.resolve_conj()).float().to(torch.get_default_device())
