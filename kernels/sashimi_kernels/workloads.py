"""The operations of the benchmark on inputs of a given size."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

import sashimi_kernels as kernels

OPERATIONS = (
    "nplr_kernel",
    "diagonal_kernel",
    "diagonal_state",
    "nplr_state",
    "fft_convolution",
    "chunk_operators",
    "chunked_convolution",
    "diagonal_step",
    "nplr_step",
    "scalar_norm",
    "layer_norm",
    "gated_residual",
    "gated_linear",
    "feed_forward",
)


class Sizes(NamedTuple):
    """B, H, N (complex states: half of the conjugate pairs) and L."""

    batch: int
    features: int
    states: int
    length: int


class Workload(NamedTuple):
    """One row of the benchmark.

    Args:
        operation: name of the operation, by which ``backend="auto"`` selects a backend, or "fft_convolution".
        length: number of samples, 1 for a recurrence step.
        run: runs the operation with the backend of this name and returns a differentiable result.
        inputs: tensors that receive gradients; empty if only the forward pass is timed.
        stepwise: the reference implementation iterates over the samples.
    """

    operation: str
    length: int
    run: Callable[[str], Tensor]
    inputs: tuple[Tensor, ...]
    stepwise: bool = False

    def forward(self, backend: str) -> None:
        """Run the operation without gradients."""
        with torch.no_grad():
            self.run(backend)

    def backward(self, backend: str) -> None:
        """Run the operation and compute its gradients."""
        y = self.run(backend)
        torch.autograd.grad(y, self.inputs, torch.ones_like(y))


def workloads(sizes: Sizes, dtype: torch.dtype, device: torch.device | str) -> list[Workload]:
    """Return the workloads.

    Args:
        sizes: sizes of the inputs.
        dtype: dtype of the signals. Only float32 includes the operations that generate kernels and final states.
        device: device of the inputs.
    """
    torch.manual_seed(0)
    system = _System(sizes, device)
    layer = _Layer(sizes, dtype, device)
    rows = []
    if dtype == torch.float32:
        rows = [*_generation(sizes.length, system), *_states(sizes.length, system, layer), _operators(system)]
    rows += _convolution(sizes.length, system, layer) + _recurrence(system, layer)
    return rows + _channelwise(sizes.length, layer) + _pointwise(sizes.length, layer)


class _System:
    """A state space with the parameters of a SaShiMi layer: dt from 0.001 to 0.1, eigenvalues -1/2 + πi n."""

    def __init__(self, sizes: Sizes, device: torch.device | str) -> None:
        shape = (sizes.features, sizes.states)
        self.dt = torch.logspace(-3, -1, sizes.features, dtype=torch.float64, device=device).unsqueeze(-1)
        imag = torch.pi * torch.arange(sizes.states, dtype=torch.float64, device=device).expand(shape)
        self.a = torch.complex(torch.full_like(imag, -0.5), imag).requires_grad_()
        self.p, self.b = torch.randn(2, *shape, dtype=torch.complex128, device=device)
        self.c, self.reverse = (
            torch.randn(shape, dtype=torch.complex64, device=device, requires_grad=True) for _ in range(2)
        )
        self.skip = torch.randn(sizes.features, device=device, requires_grad=True)
        self.nplr = (self.dt, self.a, self.p, self.p.conj(), self.b)

    def diagonal(self) -> kernels.DiscreteDiagonal:
        return kernels.discretize_diagonal(self.dt, self.a, self.b, "zoh")


class _Layer:
    """Inputs of a layer: signals, gates, biases and states."""

    def __init__(self, sizes: Sizes, dtype: torch.dtype, device: torch.device | str) -> None:
        batch, features, states, length = sizes
        self.u, self.residual, self.bias = (
            torch.randn(shape, device=device).to(dtype).requires_grad_()
            for shape in ((batch, features, length), (batch, features, length), (batch, features))
        )
        self.gates = torch.randn(batch, 2 * features, length, device=device).to(dtype).requires_grad_()
        self.gain, self.shift = (torch.ones(1, device=device, requires_grad=True) for _ in range(2))
        self.weight, self.offset = (torch.ones(features, device=device, requires_grad=True) for _ in range(2))
        # Both linear maps have twice as many outputs or inputs as features.
        self.expand, self.reduce, self.expand_bias, self.reduce_bias = (
            torch.randn(shape, device=device).div(features**0.5).requires_grad_()
            for shape in ((2 * features, features), (features, 2 * features), (2 * features,), (features,))
        )
        self.state = torch.randn(batch, features, states, dtype=torch.complex64, device=device)


def _generation(length: int, system: _System) -> list[Workload]:
    c = system.c.unsqueeze(0)

    def diagonal(backend: str) -> Tensor:
        log_a, b = system.diagonal()
        # The reference computes H · N · L exponentials, in single precision for a fair comparison.
        log_a = log_a.to(torch.complex64) if backend == "reference" else log_a
        return kernels.diagonal_kernel(log_a, c * b.to(c.dtype), length, backend)

    def nplr(backend: str) -> Tensor:
        return kernels.nplr_kernel(*system.nplr, c, length, backend=backend)[0]

    inputs = (system.a, system.c)
    return [Workload("nplr_kernel", length, nplr, inputs), Workload("diagonal_kernel", length, diagonal, inputs)]


def _operators(system: _System) -> Workload:
    def operators(backend: str) -> Tensor:
        discrete = kernels.discretize_nplr(*system.nplr)
        found = kernels.chunk_operators(discrete, system.c, system.skip, system.reverse, backend=backend)
        return torch.cat([x.flatten() for x in found if x is not None])

    return Workload("chunk_operators", 1, operators, (system.a, system.c, system.skip, system.reverse))


def _convolution(length: int, system: _System, layer: _Layer) -> list[Workload]:
    u, c, reverse, skip = layer.u, system.c, system.reverse, system.skip

    def fft(backend: str) -> Tensor:
        log_a, b = system.diagonal()
        kernel = kernels.diagonal_kernel(log_a, torch.stack([c, reverse]) * b.to(c.dtype), length, backend)
        lags = kernels.kernel_lags(kernel[0], skip, kernel[1]).unsqueeze(0)
        return kernels.long_convolution(u.float().unsqueeze(1), lags).squeeze(1).to(u.dtype)

    def chunked(backend: str) -> Tensor:
        operators = kernels.chunk_operators(system.diagonal(), c, skip, reverse)
        return kernels.chunked_convolution(u, operators, backend=backend)[0]

    inputs = (u, system.a, c, reverse, skip)
    return [
        Workload("fft_convolution", length, fft, inputs),
        Workload("chunked_convolution", length, chunked, inputs, stepwise=True),
    ]


def _states(length: int, system: _System, layer: _Layer) -> list[Workload]:
    def diagonal(backend: str) -> Tensor:
        return kernels.diagonal_state(system.diagonal(), layer.u, backend=backend)

    def nplr(backend: str) -> Tensor:
        return kernels.nplr_state(*system.nplr, layer.u, backend=backend)

    return [
        Workload("diagonal_state", length, diagonal, (), stepwise=True),
        Workload("nplr_state", length, nplr, (), stepwise=True),
    ]


def _recurrence(system: _System, layer: _Layer) -> list[Workload]:
    sample, c, skip = layer.u[..., 0], system.c.unsqueeze(0), system.skip.unsqueeze(0)
    log_a, b = (x.detach() for x in system.diagonal())
    a, b = torch.exp(log_a).to(c.dtype), b.to(c.dtype)
    rank_one = kernels.DiscreteNPLR(*(x.detach().to(c.dtype) for x in kernels.discretize_nplr(*system.nplr)))

    def diagonal(backend: str) -> Tensor:
        return kernels.diagonal_step(sample, layer.state, a, b, c, skip, True, backend)[0]

    def nplr(backend: str) -> Tensor:
        return kernels.nplr_step(sample, layer.state, rank_one, c, skip, True, backend)[0]

    return [Workload("diagonal_step", 1, diagonal, ()), Workload("nplr_step", 1, nplr, ())]


def _channelwise(length: int, layer: _Layer) -> list[Workload]:
    u, bias, gates, residual = layer.u, layer.bias, layer.gates, layer.residual
    gain, shift, weight, offset = layer.gain, layer.shift, layer.weight, layer.offset

    def scalar_norm(backend: str) -> Tensor:
        return kernels.scalar_norm(u, gain, shift, bias, backend=backend)

    def layer_norm(backend: str) -> Tensor:
        return kernels.layer_norm(u, weight, offset, bias, backend=backend)

    def gated_residual(backend: str) -> Tensor:
        return kernels.gated_residual(gates, residual, backend)

    return [
        Workload("scalar_norm", length, scalar_norm, (u, gain, shift, bias)),
        Workload("layer_norm", length, layer_norm, (u, weight, offset, bias)),
        Workload("gated_residual", length, gated_residual, (gates, residual)),
    ]


def _pointwise(length: int, layer: _Layer) -> list[Workload]:
    u, residual, norm = layer.u, layer.residual, (layer.gain, layer.shift)
    maps = (layer.expand, layer.expand_bias, layer.reduce, layer.reduce_bias)

    def gated_linear(backend: str) -> Tensor:
        # A part of a computation: without gradients, the torch backend overwrites its input.
        x = u if torch.is_grad_enabled() else u.clone()
        return kernels.gated_linear(x, *maps[:2], residual, backend)

    def feed_forward(backend: str) -> Tensor:
        return kernels.feed_forward(u, "scalar", *norm, 1e-8, *maps, residual, backend)

    return [
        Workload("gated_linear", length, gated_linear, (u, *maps[:2], residual)),
        Workload("feed_forward", length, feed_forward, (u, *norm, *maps, residual)),
    ]
