"""Convolution kernels of state spaces, in the form in which the convolution needs them.

Kernels of several state spaces of equal shape are computed together: their features are concatenated, so that every
operation runs once for all of them. On a GPU this takes a fraction of the launches.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sashimi_kernels as kernels
from sashimi_diffusion.ssm.precision import without_autocast
from sashimi_diffusion.ssm.system import ContinuousSystem, LinearSystem, continuous_system, joined, require_rate


class Lags(NamedTuple):
    """Kernels arranged for the FFT by :func:`sashimi_kernels.kernel_lags`, real (outputs, H, size)."""

    lags: Tensor


class Spectrum(NamedTuple):
    """Spectrum of :class:`Lags`, complex (outputs, H, size // 2 + 1): inference needs nothing else."""

    spectrum: Tensor


Operator: TypeAlias = Lags | Spectrum | kernels.ChunkOperators


class ConvolutionalSystem(LinearSystem):
    """A linear system with output vectors, and the convolution kernels that follow from it.

    Args:
        d_model, n_state, parameterization, initialization, discretization, n_ssm, dt_min, dt_max, stable,
            bidirectional, reverse_shift, outputs_per_feature, max_length, bandlimit, backend: see :class:`StateSpace`.

    Raises:
        ValueError: an unknown name, or a combination that is not supported.
    """

    def __init__(
        self,
        d_model: int,
        n_state: int,
        parameterization: str,
        initialization: str,
        discretization: str,
        n_ssm: int | None,
        dt_min: float,
        dt_max: float,
        stable: bool,
        bidirectional: bool,
        reverse_shift: int,
        outputs_per_feature: int,
        max_length: int | None,
        bandlimit: float | None,
        backend: str,
    ) -> None:
        super().__init__(
            d_model, n_state, parameterization, initialization, discretization, n_ssm, dt_min, dt_max, stable
        )
        if reverse_shift not in (0, 1):
            raise ValueError(f"reverse_shift must be 0 or 1, got {reverse_shift}")
        if max_length is not None and not bidirectional:
            raise ValueError("max_length would make the convolution differ from the recurrence: set bidirectional")
        if bandlimit is not None and parameterization != "diag":
            raise ValueError(
                "bandlimit needs parameterization 'diag': the low-rank term of 'nplr' couples the states, so a single "
                "state has no frequency"
            )
        self.outputs_per_feature, self.bandlimit, self.backend = outputs_per_feature, bandlimit, backend
        self.bidirectional, self.reverse_shift, self.max_length = bidirectional, reverse_shift, max_length
        c = torch.randn(outputs_per_feature * (1 + bidirectional), d_model, n_state // 2, dtype=torch.complex64)
        self.C = nn.Parameter(torch.view_as_real(c))  # (outputs · directions, H, N, 2)
        self.D = nn.Parameter(torch.randn(outputs_per_feature, d_model))  # (outputs, H)

    def kernel_length(self, length: int, rate: float) -> int:
        """Return the number of samples after which the kernels for signals of ``length`` samples are zero."""
        require_rate(rate)
        return length if self.max_length is None else min(length, max(1, round(self.max_length / rate)))

    def uses_chunks(self, dtype: torch.dtype, batch: int, length: int, rate: float) -> bool:
        """Return whether signals of this dtype and size are convolved by Triton chunk by chunk, without an FFT."""
        if self.outputs_per_feature > 1 or self.kernel_length(length, rate) < length:
            return False
        backend = kernels.backend_name(self.backend, self.D.device, "chunked_convolution", dtype, length, batch)
        return backend == "triton"


def convolution_operators(
    systems: Sequence[ConvolutionalSystem], dtype: torch.dtype, batch: int, lengths: Sequence[int], rate: float
) -> list[Operator]:
    """Return what :func:`convolve` needs for each of ``systems``.

    Operators in chunks do not depend on the length, so they are computed together for all systems. Others are computed
    together for all systems of equal width and length.

    Args:
        systems: state spaces with equal arguments except ``d_model``.
        dtype: dtype of the signals.
        batch: batch size of the signals.
        lengths: number of samples of the signals of each system.
        rate: factor of the step sizes.
    """
    groups: dict[tuple[int, int] | None, list[int]] = {}  # None: in chunks
    for index, (system, length) in enumerate(zip(systems, lengths, strict=True)):
        key = None if system.uses_chunks(dtype, batch, length, rate) else (system.d_model, length)
        groups.setdefault(key, []).append(index)
    operators: dict[int, Operator] = {}
    with without_autocast(systems[0].D.device):
        for key, indices in groups.items():
            members = [systems[index] for index in indices]
            computed = _chunk_operators(members, rate) if key is None else _fourier_operators(members, key[1], rate)
            operators.update(zip(indices, computed, strict=True))
    return [operators[index] for index in range(len(systems))]


def convolve(u: Tensor, operator: Operator, state: Tensor | None, backend: str) -> Tensor:
    """Convolve a signal (B, H, L): (B, outputs · H, L) in the same dtype.

    ``state`` is an initial state, complex (B, H, N), only for the chunked convolution; see also
    :func:`convolve_from_state`.
    """
    if isinstance(operator, kernels.ChunkOperators):
        return kernels.chunked_convolution(u, operator, state, backend, with_final=False)[0]
    if isinstance(operator, Lags):
        signal = u.to(operator.lags.dtype).unsqueeze(1)  # (B, 1, H, L)
        return kernels.long_convolution(signal, operator.lags).flatten(1, 2).to(u.dtype)
    signal = u.to(operator.spectrum.dtype.to_real()).unsqueeze(1)
    return kernels.spectrum_convolution(signal, operator.spectrum).flatten(1, 2).to(u.dtype)


def convolve_from_state(u: Tensor, system: ConvolutionalSystem, state: Tensor, rate: float) -> Tensor:
    """Convolve a signal (B, H, L) by FFT, from an initial state, complex (B, H, N): (B, outputs · H, L)."""
    signal = u.to(system.D.dtype).unsqueeze(1)  # (B, 1, H, L)
    own, response = _kernel_and_response([system], u.shape[-1], state, rate)
    y = kernels.long_convolution(signal, _lags([system], own))  # (B, outputs, H, L)
    y = y if response is None else y + response
    return y.flatten(1, 2).to(u.dtype)


def kernel(systems: Sequence[ConvolutionalSystem], length: int, rate: float) -> Tensor:
    """Return the convolution kernels without D, real (outputs · directions, systems · H, length), causal ones first."""
    computed = systems[0].kernel_length(length, rate)
    return F.pad(_kernel_and_response(systems, computed, None, rate)[0], (0, length - computed))


def discretized(system: ContinuousSystem, like: ConvolutionalSystem) -> kernels.DiscreteDiagonal | kernels.DiscreteNPLR:
    """Return the discrete system, in double precision, with the method of ``like``."""
    if like.parameterization == "nplr":
        return kernels.discretize_nplr(*system)
    return kernels.discretize_diagonal(system.dt, system.a, system.b, like.discretization)


def output_vectors(systems: Sequence[ConvolutionalSystem], system: ContinuousSystem, rate: float) -> Tensor:
    """Return C, complex (outputs · directions, systems · H, N), zero for the states above the band limit."""
    c = torch.view_as_complex(joined([one.C for one in systems], axis=1))
    if systems[0].bandlimit is None:
        return c
    frequency = system.dt / rate * system.a.imag.abs() / (2 * math.pi)  # (systems · H, N)
    return c * (frequency < systems[0].bandlimit / 2)


def _kernel_and_response(
    systems: Sequence[ConvolutionalSystem], length: int, state: Tensor | None, rate: float
) -> tuple[Tensor, Tensor | None]:
    """Return kernels (outputs · directions, systems · H, L) and the response (B, outputs, H, L) to a ``state``."""
    first, system = systems[0], continuous_system(systems, rate)
    c = output_vectors(systems, system, rate)
    if first.parameterization == "nplr":
        return kernels.nplr_kernel(*system, c, length, state, first.backend)
    discrete = kernels.discretize_diagonal(system.dt, system.a, system.b, first.discretization)
    own = kernels.diagonal_kernel(discrete.log_a, c * discrete.b.to(c.dtype), length, first.backend)
    if state is None:
        return own, None
    # y[t] = C Ā^(t+1) x: the kernel of every (batch, output) pair with C Ā x in the place of C B̄.
    coefficients = c * (torch.exp(discrete.log_a).to(c.dtype) * state).unsqueeze(1)  # (B, outputs, H, N)
    response = kernels.diagonal_kernel(discrete.log_a, coefficients.flatten(0, 1), length, first.backend)
    return own, response.unflatten(0, coefficients.shape[:2])


def _lags(systems: Sequence[ConvolutionalSystem], kernel: Tensor) -> Tensor:
    """Return kernels and D arranged by :func:`sashimi_kernels.kernel_lags`, real (outputs, systems · H, size)."""
    outputs = systems[0].outputs_per_feature
    reverse = kernel[outputs:] if systems[0].bidirectional else None
    skip = joined([system.D for system in systems], axis=1)
    return kernels.kernel_lags(kernel[:outputs], skip, reverse, systems[0].reverse_shift)


def _fourier_operators(systems: Sequence[ConvolutionalSystem], length: int, rate: float) -> Iterable[Operator]:
    """Return the operators of systems of equal width for the convolution by FFT."""
    lags = _lags(systems, kernel(systems, length, rate))  # (outputs, systems · H, size)
    width = systems[0].d_model
    if systems[0].training or torch.is_grad_enabled():
        return map(Lags, lags.split(width, dim=1))
    return map(Spectrum, kernels.lags_spectrum(lags).split(width, dim=1))


def _chunk_operators(systems: Sequence[ConvolutionalSystem], rate: float) -> Iterable[Operator]:
    """Return the operators for the convolution in chunks."""
    first, system = systems[0], continuous_system(systems, rate)
    c, *reverse = output_vectors(systems, system, rate).unbind()
    skip = joined([one.D for one in systems], axis=1).squeeze(0)
    operators = kernels.chunk_operators(
        discretized(system, first), c, skip, reverse[0] if reverse else None, first.reverse_shift
    )
    return operators.split([one.d_model for one in systems])
