"""Tests of the chunked convolution: outputs and gradients of every backend against the recurrence in float64."""

import importlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import sashimi_kernels as kernels
from tests.kernels.sample_recurrence import recurrence

chunk_operators = importlib.import_module(
    "sashimi_kernels.torch_backend.chunk_operators"
)  # has a function of this name
# The forward direction without and with a state, and both directions with each shift.
MODES = {
    "forward": (False, False, 1),
    "state": (False, True, 1),
    "both": (True, False, 1),
    "both from here": (True, False, 0),
}
SYSTEMS = {"diag": kernels.DiscreteDiagonal, "nplr": kernels.DiscreteNPLR}
# Bounds of the RMS and the maximum of the error.
BOUNDS = {torch.float32: (3e-6, 1e-5), torch.float16: (1e-3, 2e-3), torch.bfloat16: (8e-3, 2e-2)}
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA or ROCm device")
every_mode = pytest.mark.parametrize("mode", MODES)
every_system = pytest.mark.parametrize("kind", SYSTEMS)


@pytest.fixture
def make_inputs(stable_system: Callable) -> Callable[..., dict[str, Tensor]]:
    """Return ``make_inputs(batch, n_features, n, length, mode, kind)``: the arguments of a mode in float64.

    The parts of the discrete system have names such as "system.b".
    """

    def make(batch: int, n_features: int, n: int, length: int, mode: str, kind: str = "diag") -> dict[str, Tensor]:
        continuous = stable_system(n_features, n)
        discrete: kernels.DiscreteDiagonal | kernels.DiscreteNPLR
        if kind == "diag":
            discrete = kernels.discretize_diagonal(continuous["dt"], continuous["a"], continuous["b"], "zoh")
        else:
            discrete = kernels.discretize_nplr(*continuous.values())
        # Scaled so that all terms have a similar magnitude.
        discrete = discrete._replace(b=discrete.b / discrete.b.abs().max())
        generator = torch.Generator().manual_seed(batch + length)
        c, reverse = torch.randn(2, n_features, n, dtype=torch.complex128, generator=generator)
        state = torch.randn(batch, n_features, n, dtype=torch.complex128, generator=generator)
        u = torch.randn(batch, n_features, length, dtype=torch.float64, generator=generator)
        skip = torch.randn(n_features, dtype=torch.float64, generator=generator)
        with_reverse, with_state, _ = MODES[mode]
        system = {f"system.{name}": x for name, x in discrete._asdict().items()}
        return {
            **{"u": u, **system, "c": c / n, "skip": skip},
            **({"reverse": reverse / n} if with_reverse else {}),
            **({"state": state} if with_state else {}),
        }

    return make


def operators_of(inputs: dict[str, Tensor], mode: str) -> kernels.ChunkOperators:
    parts = [x for name, x in inputs.items() if name.startswith("system.")]
    system = (kernels.DiscreteDiagonal if len(parts) == 2 else kernels.DiscreteNPLR)(*parts)
    return kernels.chunk_operators(system, inputs["c"], inputs.get("skip"), inputs.get("reverse"), MODES[mode][2])


def convolve(inputs: dict[str, Tensor], mode: str, backend: str) -> tuple[Tensor, Tensor | None]:
    if backend == "recurrence":
        return recurrence(inputs, MODES[mode][2])
    return kernels.chunked_convolution(inputs["u"], operators_of(inputs, mode), inputs.get("state"), backend)


def results(inputs: dict[str, Tensor], mode: str, backend: str) -> dict[str, Tensor]:
    """Return the outputs, and the gradients of their randomly weighted sum with respect to all inputs."""
    inputs = {name: value.detach().requires_grad_() for name, value in inputs.items()}
    outputs = {
        name: x for name, x in zip(("y", "final"), convolve(inputs, mode, backend), strict=True) if x is not None
    }
    weights = [_weights(x) for x in outputs.values()]
    gradients = torch.autograd.grad(list(outputs.values()), list(inputs.values()), weights)
    named = {f"gradient of {name}": x.resolve_conj() for name, x in zip(inputs, gradients, strict=True)}
    return {**outputs, **named}


def _weights(x: Tensor) -> Tensor:
    """Return random numbers that every dtype represents exactly."""
    generator = torch.Generator().manual_seed(9)
    real, imag = torch.randint(-8, 9, (2, *x.shape), generator=generator) / 8
    return (torch.complex(real, imag) if x.is_complex() else real).to(x)


def check(
    assert_close: Callable,
    inputs: dict[str, Tensor],
    mode: str,
    backend: str,
    dtype: torch.dtype,
    against: str = "recurrence",
) -> None:
    """Compare outputs and gradients for samples of ``dtype`` with a backend in float64 on the same samples."""
    rounded = {**inputs, "u": inputs["u"].to(dtype)}
    actual = results(rounded, mode, backend)
    expected = results({**inputs, "u": rounded["u"].double()}, mode, against)
    assert actual["y"].dtype == actual["gradient of u"].dtype == dtype
    assert actual.keys() == expected.keys()
    if "final" in actual:
        assert actual["final"].dtype == torch.complex64
    for name, got in actual.items():
        assert_close(name, got, expected[name], *BOUNDS[dtype])


@every_mode
@every_system
@pytest.mark.parametrize("chunk", [4, 128])
@pytest.mark.parametrize(
    ("batch", "h", "n", "length"), [(1, 1, 1, 1), (2, 3, 5, 37), (1, 2, 33, 16), (2, 1, 4, 3), (3, 2, 1, 200)]
)
def test_torch_matches_the_recurrence(
    monkeypatch: pytest.MonkeyPatch,
    make_inputs: Callable,
    assert_close: Callable,
    mode: str,
    kind: str,
    chunk: int,
    batch: int,
    h: int,
    n: int,
    length: int,
) -> None:
    monkeypatch.setattr(chunk_operators, "CHUNK", chunk)
    inputs = make_inputs(batch, h, n, length, mode, kind)
    expected = results(inputs, mode, "recurrence")
    for backend in ("torch", "reference"):
        for name, got in results(inputs, mode, backend).items():
            assert_close(name, got, expected[name], 1e-11, 1e-11)
    for dtype in (torch.float32, torch.float16):
        check(assert_close, inputs, mode, "torch", dtype)


@every_mode
@every_system
def test_torch_gradients(monkeypatch: pytest.MonkeyPatch, make_inputs: Callable, mode: str, kind: str) -> None:
    monkeypatch.setattr(chunk_operators, "CHUNK", 4)
    inputs = {name: x.requires_grad_() for name, x in make_inputs(2, 2, 2, 11, mode, kind).items()}

    def outputs(*values: Tensor) -> tuple[Tensor, ...]:
        found = convolve(dict(zip(inputs, values, strict=True)), mode, "torch")
        return tuple(x for x in found if x is not None)

    assert torch.autograd.gradcheck(outputs, tuple(inputs.values()))


@every_mode
def test_results_match_the_fft_convolution(make_inputs: Callable, assert_close: Callable, mode: str) -> None:
    """The signal has many chunks, and phases reach thousands of turns."""
    inputs = make_inputs(1, 2, 4, 6000, mode)
    log_a = inputs["system.log_a"] = torch.complex(inputs["system.log_a"].real / 10, inputs["system.log_a"].imag + 3)
    inputs.pop("state", None)
    u, b = inputs["u"], inputs["system.b"]
    vectors = torch.stack([inputs["c"], inputs["reverse"]] if "reverse" in inputs else [inputs["c"]])
    kernel, *reverse = kernels.diagonal_kernel(log_a, vectors * b, u.shape[-1])
    lags = F.pad(kernel, (0, u.shape[-1]))
    for future in reverse:
        lags = lags + F.pad(future, (0, u.shape[-1])).flip(-1).roll(1 - MODES[mode][2], dims=-1)
    spectrum = torch.fft.rfft(lags) + inputs["skip"].unsqueeze(-1)
    expected = torch.fft.irfft(torch.fft.rfft(u, lags.shape[-1]) * spectrum)[..., : u.shape[-1]]
    y, _ = convolve(inputs, mode, "torch")
    assert_close("y", y, expected, 1e-11, 1e-11)
    y, _ = convolve({**inputs, "u": u.float()}, mode, "torch")
    assert_close("y", y, expected, 1e-5, 1e-5)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_a_signal_in_two_parts(make_inputs: Callable, assert_close: Callable, backend: str) -> None:
    """The second part of a signal depends on the first only through the state."""
    inputs = make_inputs(1, 1, 3, 300, "state")
    inputs["u"] = inputs["u"].float()
    whole, final = convolve(inputs, "state", backend)
    first, state = convolve({**inputs, "u": inputs["u"][..., :130]}, "state", backend)
    second, after = convolve({**inputs, "u": inputs["u"][..., 130:], "state": state}, "state", backend)
    assert_close("y", torch.cat([first, second], dim=-1), whole, 1e-6, 1e-6)
    assert_close("state", after, final, 1e-6, 1e-6)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize(
    ("batch", "h", "n", "length", "mode", "dtype", "kind"),
    [
        (1, 1, 1, 1, "state", torch.float32, "nplr"),
        (1, 1, 2, 1, "both from here", torch.float16, "diag"),
        (2, 2, 3, 300, "state", torch.float32, "diag"),
        (1, 1, 33, 129, "both from here", torch.float32, "diag"),
        (1, 1, 40, 136, "state", torch.float16, "nplr"),
        (2, 1, 5, 300, "both", torch.float32, "nplr"),
        (1, 3, 16, 100, "forward", torch.float32, "diag"),
        (2, 1, 5, 257, "state", torch.float16, "nplr"),
        (1, 1, 17, 200, "both", torch.float16, "nplr"),
        (2, 2, 32, 1000, "both", torch.float32, "nplr"),
    ],
)
def test_triton_matches_the_recurrence(
    make_inputs: Callable,
    assert_close: Callable,
    batch: int,
    h: int,
    n: int,
    length: int,
    mode: str,
    dtype: torch.dtype,
    kind: str,
) -> None:
    pytest.importorskip("triton", reason="the triton package is not installed")
    check(assert_close, make_inputs(batch, h, n, length, mode, kind), mode, "triton", dtype)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("mode", ["state", "both"])
@pytest.mark.parametrize("architecture", ["ampere", "cdna", "rdna"])
def test_triton_tiles_of_other_gpus(
    monkeypatch: pytest.MonkeyPatch,
    make_inputs: Callable,
    assert_close: Callable,
    architecture: str,
    mode: str,
    dtype: torch.dtype,
) -> None:
    pytest.importorskip("triton", reason="the triton package is not installed")
    from sashimi_kernels.triton_backend import chunk_outputs, chunk_products, chunk_states

    for module in (chunk_states, chunk_outputs, chunk_products):
        monkeypatch.setattr(module, "architecture", lambda device: architecture)
    check(assert_close, make_inputs(1, 1, 3, 264, mode, "nplr"), mode, "triton", dtype)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("mode", ["state", "both"])
def test_triton_states_are_carried_over_many_chunks(make_inputs: Callable, assert_close: Callable, mode: str) -> None:
    """There are more chunks than one program sums at once; a slow decay carries the states far."""
    pytest.importorskip("triton", reason="the triton package is not installed")
    inputs = make_inputs(1, 1, 2, 8500, mode)
    inputs["system.log_a"] = torch.complex(inputs["system.log_a"].real / 100, inputs["system.log_a"].imag)
    check(assert_close, inputs, mode, "triton", torch.float32, against="torch")


@pytest.mark.usefixtures("poisoned_memory")
@every_mode
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_empty_batch(make_inputs: Callable, mode: str, backend: str) -> None:
    inputs = make_inputs(0, 2, 3, 130, mode)
    inputs["u"] = inputs["u"].float()
    found = results(inputs, mode, backend)
    assert found["y"].shape == inputs["u"].shape
    assert mode not in ("forward", "state") or found["final"].shape == (0, 2, 3)
    assert all((x == 0).all() for x in found.values())


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("layout", ["transposed", "sliced", "strided"])
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_layouts(make_inputs: Callable, assert_close: Callable, backend: str, layout: str) -> None:
    inputs = make_inputs(2, 1, 3, 140, "forward")
    inputs["u"] = {
        "transposed": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
        "sliced": lambda x: x.repeat(2, 3, 1)[::2, 1:2],
        "strided": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    }[layout](inputs["u"])
    check(assert_close, inputs, "forward", backend, torch.float32)


@pytest.mark.parametrize("name", ["u", "system.log_a", "system.b", "c", "skip", "state"])
def test_triton_gradient_of_one_input(make_inputs: Callable, assert_close: Callable, name: str) -> None:
    """The output is summed, so that its gradient has strides of zero."""
    inputs = make_inputs(1, 1, 3, 140, "state")

    def gradient(backend: str, dtype: torch.dtype) -> Tensor:
        values = {**inputs, "u": inputs["u"].to(dtype)}
        values[name] = values[name].detach().requires_grad_()
        y, _ = convolve(values, "state", backend)
        return torch.autograd.grad(y.sum(), values[name])[0]

    assert_close(name, gradient("triton", torch.float32), gradient("recurrence", torch.float64), 3e-6, 1e-5)


@pytest.mark.parametrize(
    ("backend", "mode", "dynamic"), [("torch", "both", False), ("triton", "state", False), ("triton", "both", True)]
)
def test_torch_compile(make_inputs: Callable, assert_close: Callable, backend: str, mode: str, dynamic: bool) -> None:
    inputs = make_inputs(1, 1, 3, 150, mode)
    inputs = {name: x.requires_grad_() for name, x in {**inputs, "u": inputs["u"].float()}.items()}

    def loss(*values: Tensor) -> Tensor:
        y, final = convolve(dict(zip(inputs, values, strict=True)), mode, backend)
        return y.square().sum() + (0 if final is None else torch.view_as_real(final).square().sum())

    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    given = tuple(inputs.values())
    actual = torch.autograd.grad(compiled(*given), given)
    for name, got, expected in zip(inputs, actual, torch.autograd.grad(loss(*given), given), strict=True):
        assert_close(name, got, expected, 1e-6, 1e-6)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_autocast_changes_nothing(make_inputs: Callable, backend: str) -> None:
    inputs = make_inputs(1, 1, 3, 140, "state")
    inputs["u"] = inputs["u"].float()
    expected = convolve(inputs, "state", backend)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        found = convolve(inputs, "state", backend)
    for got, wanted in zip(found, expected, strict=True):
        assert torch.equal(got, wanted)


def test_invalid_arguments_are_refused(make_inputs: Callable) -> None:
    inputs = make_inputs(1, 1, 3, 5, "both")
    with pytest.raises(ValueError, match="has no initial state"):
        convolve({**inputs, "state": make_inputs(1, 1, 3, 5, "state")["state"]}, "both", "torch")
    system = kernels.DiscreteDiagonal(inputs["system.log_a"], inputs["system.b"])
    with pytest.raises(ValueError, match="not 2"):
        kernels.chunk_operators(system, inputs["c"], shift=2)
    for name in ("system.log_a", "c", "reverse", "skip"):
        with pytest.raises(ValueError, match=f"expected {name.removeprefix('system.')} of shape"):
            convolve({**inputs, name: inputs[name][..., :0]}, "both", "torch")
    with pytest.raises(ValueError, match="expected u of shape"):
        convolve({**inputs, "u": inputs["u"].repeat(1, 2, 1)}, "both", "torch")
    with pytest.raises(ValueError, match="expected state of shape"):
        convolve({**make_inputs(1, 1, 3, 5, "state"), "state": inputs["c"]}, "state", "torch")
    pytest.importorskip("triton", reason="the triton package is not installed")
    with pytest.raises(kernels.BackendUnavailableError, match="not in float64"):
        convolve(inputs, "both", "triton")


@pytest.mark.gpu
@GPU
@every_mode
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize(("batch", "h", "n", "length"), [(1, 1, 1, 1), (3, 5, 33, 1000), (2, 4, 32, 16001)])
def test_on_a_gpu(
    make_inputs: Callable,
    assert_close: Callable,
    batch: int,
    h: int,
    n: int,
    length: int,
    dtype: torch.dtype,
    mode: str,
) -> None:
    inputs = {name: x.cuda() for name, x in make_inputs(batch, h, n, length, mode).items()}
    check(assert_close, inputs, mode, "triton", dtype)
