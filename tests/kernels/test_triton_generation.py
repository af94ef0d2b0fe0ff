"""Tests of the generation of kernels and states in Triton: outputs and gradients against float64."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

import sashimi_kernels as kernels

pytest.importorskip("triton", reason="the triton package is not installed")

from sashimi_kernels.triton_backend import cauchy, nplr_recurrence, vandermonde
from sashimi_kernels.triton_backend.launch import recording

pytestmark = pytest.mark.usefixtures("poisoned_memory", "only_listed_forms")

# Tiles of the Vandermonde kernels hold 1,024 and 2,048 positions and 16 states, tiles of the Cauchy kernels 256 nodes
# (of about 2 positions) and 4 rows; 32 states fill a block of the recurrence.
DIAGONAL_SIZES = [(1, 1, 1, 1), (2, 3, 5, 37), (1, 1, 17, 300), (1, 1, 3, 2500), (0, 2, 3, 10), (2, 1, 32, 64)]
NPLR_SIZES = [(1, 1, 1, 1), (2, 3, 5, 37), (1, 1, 3, 600), (3, 2, 4, 64)]
STATE_SIZES = [(1, 1, 1, 1), (2, 3, 5, 37), (1, 1, 33, 100), (0, 2, 3, 10)]
BOUNDS = {torch.float32: (1e-5, 1e-5), torch.float16: (2e-3, 2e-3), torch.bfloat16: (1e-2, 1e-2)}
# Arguments of the operators, as real tensors: (1, H, N, 2), (H, N, 2) and (K,).
PAIRS = torch.tensor([0.7, -1.3, 0.4, 0.9]).view(1, 1, 2, 2)
EXPONENTS = torch.tensor([-0.3, 1.1, -0.6, 2.0], dtype=torch.float64).view(1, 2, 2)
NODES = torch.tensor([0.0, 0.5], dtype=torch.float64)
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA or ROCm device")

Inputs = dict[str, Tensor | None]
Operation = Callable[[Inputs, str], list[Tensor]]


@pytest.fixture
def only_listed_forms() -> Iterator[None]:
    """Assert that every kernel is started in a form that ahead-of-time compilation covers."""
    with recording() as started:
        yield
    listed = {launch.form() for module in (cauchy, nplr_recurrence, vandermonde) for launch in module.launches()}
    assert {launch.form() for launch in started} <= listed


@pytest.fixture
def check(assert_close: Callable) -> Callable[..., None]:
    """Return ``check(operation, inputs, dtypes)``: compare Triton on rounded inputs with float64 on the same inputs."""

    def check(operation: Operation, inputs: Inputs, dtypes: dict[str, torch.dtype]) -> None:
        rounded = {name: None if x is None else x.to(dtypes.get(name, x.dtype)) for name, x in inputs.items()}
        exact = {name: None if x is None else x.to(inputs[name].dtype) for name, x in rounded.items()}
        expected = outputs_and_gradients(operation, exact, "reference")
        actual = outputs_and_gradients(operation, rounded, "triton")
        assert actual.keys() == expected.keys()
        bounds = max(BOUNDS[dtype] for dtype in (torch.float32, *dtypes.values()) if dtype in BOUNDS)
        for name, got in actual.items():
            if name in rounded:
                assert got.dtype == rounded[name].dtype, name
            assert_close(name, got, expected[name], *bounds)

    return check


def outputs_and_gradients(operation: Operation, inputs: Inputs, backend: str) -> dict[str, Tensor]:
    """Return outputs by number, and gradients of their randomly weighted sum by the names of the inputs."""
    leaves = {name: None if x is None else x.detach().requires_grad_() for name, x in inputs.items()}
    outputs = operation(leaves, backend)
    cotangents = [randn(*y.shape, seed=7 + index) for index, y in enumerate(outputs)]
    cotangents = [(x if y.is_complex() else x.real).to(y) for x, y in zip(cotangents, outputs, strict=True)]
    wanted = {name: x for name, x in leaves.items() if x is not None}
    gradients = torch.autograd.grad(outputs, list(wanted.values()), cotangents)
    return {**{f"output {index}": y for index, y in enumerate(outputs)}, **dict(zip(wanted, gradients, strict=True))}


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.complex128, generator=torch.Generator().manual_seed(seed))


def diagonal_kernel(inputs: Inputs, backend: str, length: int) -> list[Tensor]:
    return [kernels.diagonal_kernel(inputs["log_a"], inputs["coefficients"], length, backend)]


def diagonal_state(inputs: Inputs, backend: str) -> list[Tensor]:
    system = kernels.DiscreteDiagonal(inputs["log_a"], inputs["b"])
    return [kernels.diagonal_state(system, inputs["u"], inputs["state"], backend)]


def nplr_kernel(inputs: Inputs, backend: str, length: int) -> list[Tensor]:
    system = [inputs[name] for name in ("dt", "a", "p", "q", "b", "c")]
    kernel, response = kernels.nplr_kernel(*system, length, inputs["state"], backend)
    return [kernel] if response is None else [kernel, response]


def nplr_state(inputs: Inputs, backend: str) -> list[Tensor]:
    return [kernels.nplr_state(*(inputs[name] for name in ("dt", "a", "p", "q", "b", "u", "state")), backend)]


def diagonal_inputs(stable_system: Callable, h: int, n: int) -> Inputs:
    system = stable_system(h, n)
    return {"log_a": system["dt"] * system["a"], "b": system["b"]}


def signal(layout: str, batch: int, h: int, length: int) -> Tensor:
    """Return a float64 input (batch, H, L), contiguous or with other strides."""
    if layout == "contiguous":
        return randn(batch, h, length, seed=3).real
    return randn(length, batch, 2 * h, seed=3).real.permute(1, 2, 0)[:, ::2]


@pytest.mark.parametrize(("m", "h", "n", "length"), DIAGONAL_SIZES)
def test_diagonal_kernel(check: Callable, stable_system: Callable, m: int, h: int, n: int, length: int) -> None:
    inputs = diagonal_inputs(stable_system, h, n)
    inputs = {"log_a": inputs["log_a"], "coefficients": randn(m, h, n, seed=1) * inputs["b"]}
    check(lambda *given: diagonal_kernel(*given, length), inputs, {"coefficients": torch.complex64})


@pytest.mark.parametrize(
    ("dtype", "layout"), [(torch.float32, "contiguous"), (torch.float32, "strided"), (torch.float16, "strided")]
)
@pytest.mark.parametrize(("batch", "h", "n", "length"), DIAGONAL_SIZES)
def test_diagonal_state(
    check: Callable,
    stable_system: Callable,
    batch: int,
    h: int,
    n: int,
    length: int,
    dtype: torch.dtype,
    layout: str,
) -> None:
    state = randn(batch, h, n, seed=2) if layout == "strided" else None
    inputs = {**diagonal_inputs(stable_system, h, n), "u": signal(layout, batch, h, length), "state": state}
    check(diagonal_state, inputs, {"u": dtype, "state": torch.complex64})


@pytest.mark.parametrize(
    ("batch", "m", "h", "n", "length"),
    [(batch, *sizes) for batch in (None, 2) for sizes in NPLR_SIZES] + [(0, *NPLR_SIZES[1])],
)
def test_nplr_kernel(
    check: Callable, stable_system: Callable, batch: int | None, m: int, h: int, n: int, length: int
) -> None:
    state = None if batch is None else randn(batch, h, n, seed=2)
    inputs = {**stable_system(h, n), "c": randn(m, h, n, seed=1), "state": state}
    check(lambda *given: nplr_kernel(*given, length), inputs, {"c": torch.complex64, "state": torch.complex64})


@pytest.mark.parametrize(
    ("dtype", "layout"), [(torch.float32, "contiguous"), (torch.float32, "strided"), (torch.float16, "strided")]
)
@pytest.mark.parametrize(("batch", "h", "n", "length"), STATE_SIZES)
def test_nplr_state(
    check: Callable,
    stable_system: Callable,
    batch: int,
    h: int,
    n: int,
    length: int,
    dtype: torch.dtype,
    layout: str,
) -> None:
    state = randn(batch, h, n, seed=2) if layout == "strided" else None
    inputs = {**stable_system(h, n), "u": signal(layout, batch, h, length), "state": state}
    check(nplr_state, inputs, {"u": dtype, "state": torch.complex64})


def test_phases_are_exact_far_from_the_start(assert_close: Callable) -> None:
    """After 20,000 samples and up to 10,000 turns a float32 phase would have an error in its third digit."""
    log_a = torch.complex(torch.full((1, 4), -1e-5), torch.tensor([[3.14, -2.0, 1e-3, 7.0]])).to(torch.complex128)
    expected = kernels.diagonal_kernel(log_a, torch.ones_like(log_a).unsqueeze(0), 20_000, "reference")
    actual = kernels.diagonal_kernel(log_a, torch.ones(1, 1, 4, dtype=torch.complex64), 20_000, "triton")
    assert_close("kernel", actual[..., -1000:], expected[..., -1000:], 1e-6, 1e-6)


def test_sums_over_a_growing_exponential(assert_close: Callable) -> None:
    """The exponential overflows float32 beyond position 88; positions after the last sample must not be summed."""
    system = kernels.DiscreteDiagonal(torch.ones(1, 1, dtype=torch.complex128), torch.ones(1, 1))
    u = torch.ones(1, 1, 40)
    expected = kernels.diagonal_state(system, u.double(), backend="reference")
    assert_close("state", kernels.diagonal_state(system, u, backend="triton"), expected, 1e-5, 1e-5)


SMALL = {
    "diagonal_kernel": lambda inputs, backend: diagonal_kernel(inputs, backend, 20),
    "diagonal_state": diagonal_state,
    "nplr_kernel": lambda inputs, backend: nplr_kernel(inputs, backend, 20),
    "nplr_state": nplr_state,
}


def all_operations(inputs: Inputs, backend: str) -> list[Tensor]:
    return [output for operation in SMALL.values() for output in operation(inputs, backend)]


def small_inputs(stable_system: Callable, dtype: torch.dtype = torch.complex64) -> Inputs:
    """Return the inputs of all operations."""
    vectors = {name: randn(1, 1, 2, seed=seed).to(dtype) for seed, name in enumerate(("coefficients", "c", "state"))}
    u = signal("contiguous", 1, 1, 20).to(dtype.to_real())
    return {**stable_system(1, 2), **diagonal_inputs(stable_system, 1, 2), **vectors, "u": u}


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("vandermonde_evaluate", (PAIRS, EXPONENTS, 9, True, torch.float16)),
        ("vandermonde_project", (PAIRS[..., 0], EXPONENTS, True, True)),
        ("cauchy_sums", (PAIRS, EXPONENTS, NODES)),
        ("cauchy_sums_backward", (PAIRS, PAIRS, EXPONENTS, NODES)),
        ("nplr_state", (PAIRS[..., 0], -EXPONENTS[..., 0, :1], *[EXPONENTS] * 4, PAIRS)),
    ],
)
def test_operators_pass_opcheck(name: str, arguments: tuple) -> None:
    """Operators match their schema, their fake tensors and their values under torch.compile."""
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(getattr(torch.ops.sashimi_kernels, name), arguments, test_utils=checks)


@pytest.mark.filterwarnings("ignore:Torchinductor does not support code generation for complex operators")
def test_compiled_as_one_graph(assert_close: Callable, stable_system: Callable) -> None:
    inputs = small_inputs(stable_system)
    expected = outputs_and_gradients(all_operations, inputs, "triton")
    torch.compiler.reset()
    compiled = torch.compile(all_operations, fullgraph=True, backend="aot_eager")
    actual = outputs_and_gradients(compiled, inputs, "triton")
    for name, wanted in expected.items():
        assert_close(name, actual[name], wanted, 1e-6, 1e-6)


def test_autocast_and_no_grad_change_nothing(stable_system: Callable) -> None:
    inputs = small_inputs(stable_system)
    expected = all_operations(inputs, "triton")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        actual = all_operations(inputs, "triton")
    assert all(torch.equal(got, wanted) for got, wanted in zip(actual, expected, strict=True))


@pytest.mark.parametrize("operation", SMALL.values(), ids=SMALL)
def test_float64_is_refused(stable_system: Callable, operation: Operation) -> None:
    with pytest.raises(kernels.BackendUnavailableError, match="float64"):
        operation(small_inputs(stable_system, torch.complex128), "triton")


def test_too_many_states_are_refused(stable_system: Callable) -> None:
    with pytest.raises(kernels.BackendUnavailableError, match="up to 512 states per feature in registers, got 513"):
        kernels.nplr_state(**stable_system(1, 513), u=torch.zeros(1, 1, 1), backend="triton")


def test_second_derivatives_are_refused(stable_system: Callable) -> None:
    log_a = diagonal_inputs(stable_system, 1, 2)["log_a"].requires_grad_()
    kernel = kernels.diagonal_kernel(log_a, torch.ones(1, 1, 2, dtype=torch.complex64), 5, "triton")
    (gradient,) = torch.autograd.grad(kernel.square().sum(), log_a, create_graph=True)
    with pytest.raises(NotImplementedError, match="use backend='torch'"):
        gradient.abs().sum().backward()


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_on_a_gpu(assert_close: Callable, stable_system: Callable, dtype: torch.dtype) -> None:
    inputs = small_inputs(stable_system)
    inputs["u"] = inputs["u"].to(dtype)
    exact = {name: x.double() if name == "u" else x.to(torch.complex128) for name, x in inputs.items()}
    expected = outputs_and_gradients(all_operations, {**exact, "dt": inputs["dt"]}, "reference")
    actual = outputs_and_gradients(all_operations, {name: x.cuda() for name, x in inputs.items()}, "triton")
    for name, wanted in expected.items():
        assert_close(name, actual[name].cpu(), wanted, *BOUNDS[dtype])
