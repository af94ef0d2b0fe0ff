"""Tests of powers of a diagonal-plus-rank-one matrix and of the accuracy of float32 kernels."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import sashimi_kernels as kernels
from sashimi_kernels.torch_backend import krylov
from sashimi_kernels.torch_backend.krylov import as_output_row, as_row, from_row, krylov_columns, krylov_rows


def random_system(h: int, n: int) -> kernels.DiscreteNPLR:
    generator = torch.Generator().manual_seed(0)
    real = -torch.rand(h, n, dtype=torch.float64, generator=generator) - 0.1
    a = torch.complex(real, 10 * torch.randn(h, n, dtype=torch.float64, generator=generator))
    p, b = torch.randn(2, h, n, dtype=torch.complex128, generator=generator)
    return kernels.discretize_nplr(torch.full((h, 1), 0.05, dtype=torch.float64), a, p, p.conj().resolve_conj(), b)


def step(system: kernels.DiscreteNPLR, x: Tensor) -> Tensor:
    """Return Ā x for x (H, m, N)."""
    a, u, v = (part.unsqueeze(1) for part in (system.a, system.u, system.v))
    return a * x - u * 2 * (v * x).real.sum(-1, keepdim=True)


@pytest.fixture(params=["steps", "doubling"])
def repetition(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a test with the steps that a CPU takes, and with the doublings that other devices take."""
    monkeypatch.setattr(krylov, "_steps_are_cheap", lambda x: request.param == "steps")


@pytest.mark.usefixtures("repetition")
@pytest.mark.parametrize("count", [1, 2, 8, 16, 32, 128])
@pytest.mark.parametrize(("h", "n", "m"), [(1, 1, 1), (2, 5, 3)])
def test_columns_match_the_powers(count: int, h: int, n: int, m: int) -> None:
    system = random_system(h, n)
    x = torch.randn(h, m, n, dtype=torch.complex128, generator=torch.Generator().manual_seed(1))
    columns, power = krylov_columns(system, x, count, torch.float64)
    assert columns.shape == (h, m, count, 2 * n)
    powered = as_row(x) @ power
    for index in range(count):
        torch.testing.assert_close(from_row(columns[:, :, index]), x, rtol=1e-10, atol=1e-12)
        x = step(system, x)
    torch.testing.assert_close(from_row(powered), x, rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("repetition")
@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 33])
def test_rows_match_the_powers(count: int) -> None:
    generator = torch.Generator().manual_seed(2)
    matrix = 0.3 * torch.randn(2, 6, 6, dtype=torch.float64, generator=generator)
    start = torch.randn(2, 3, 6, dtype=torch.float64, generator=generator)
    expected = torch.stack([start @ torch.linalg.matrix_power(matrix, power) for power in range(count)], dim=1)
    torch.testing.assert_close(krylov_rows(matrix, start, count), expected, rtol=1e-10, atol=1e-12)
    x, y = matrix.clone().requires_grad_(), start.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda matrix, start: krylov_rows(matrix, start, count), (x, y))


@pytest.mark.usefixtures("repetition")
def test_gradients_of_columns_match_finite_differences() -> None:
    system = random_system(2, 2)
    inputs = [x.detach().requires_grad_() for x in (*system, torch.ones(2, 1, 2, dtype=torch.complex128))]

    def columns(*inputs: Tensor) -> tuple[Tensor, Tensor]:
        return krylov_columns(kernels.DiscreteNPLR(*inputs[:4]), inputs[4], 64, torch.float64)

    assert torch.autograd.gradcheck(columns, inputs)


def test_launches_of_a_kernel_do_not_grow_with_the_square_root_of_the_length() -> None:
    """Elsewhere than on a CPU, powers are computed by doubling."""
    shape = (2, 4)
    dt, a = torch.ones(2, 1, dtype=torch.float64), torch.randn(shape, dtype=torch.complex128)
    meta = [x.to("meta").requires_grad_() for x in (dt, a, a, a, a, torch.randn(1, *shape, dtype=torch.complex64))]
    counts = []
    for length in (1000, 64000):
        with Products() as mode:
            kernel, _ = kernels.nplr_kernel(*meta, length, backend="torch")
            torch.autograd.grad(kernel.sum(), meta)
        counts.append(mode.count)
    assert counts[0] < 60
    assert counts[1] - counts[0] < 40


class Products(TorchDispatchMode):
    """Counts matrix products."""

    count = 0

    def __torch_dispatch__(self, operation: Any, types: Any, arguments: tuple = (), options: dict | None = None) -> Any:
        self.count += operation._schema.name in ("aten::bmm", "aten::baddbmm", "aten::mm")
        return operation(*arguments, **(options or {}))


def test_output_rows_compute_the_output_of_states() -> None:
    c, x = torch.randn(2, 3, 4, dtype=torch.complex128, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close((as_output_row(c) * as_row(x)).sum(-1), 2 * (c * x).real.sum(-1))


def test_float32_kernels_stay_accurate_to_the_last_sample() -> None:
    """The error of the official float32 code is 1.6e-3 to 4e-3 at this length."""
    from sashimi_diffusion.ssm import StateSpace

    torch.manual_seed(0)
    space = StateSpace(8, n_state=64)
    system, c = space.continuous_system(), torch.view_as_complex(space.C)
    arguments = tuple(system)
    with torch.no_grad():
        exact, _ = kernels.nplr_kernel(*arguments, c.to(torch.complex128), 16000, backend="torch")
        single, _ = kernels.nplr_kernel(*arguments, c, 16000, backend="torch")
    error = (single - exact).abs().amax(-1) / exact.abs().amax(-1)
    assert error.max() < 2e-6


def test_decaying_values_become_zero() -> None:
    """Denormal numbers are correct but fifty times slower on some processors."""
    rows = krylov_rows(0.1 * torch.eye(4).unsqueeze(0), torch.ones(1, 1, 4), 100)  # 1, 0.1, … 1e-99
    log_a = torch.full((1, 1), -1.0 + 0.1j, dtype=torch.complex128)
    kernel = kernels.diagonal_kernel(log_a, torch.ones(1, 1, 1, dtype=torch.complex64), 200, backend="torch")
    for decaying in (rows, kernel):
        size = decaying.abs()
        assert size.max() >= 1
        assert not ((size > 0) & (size < torch.finfo(torch.float32).tiny)).any()
        assert (size == 0).any()
