"""Tests of the feed-forward layer: outputs and gradients against the reference in float64."""

import importlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import sashimi_kernels as kernels

pytest.importorskip("triton", reason="the triton package is not installed")

BOUNDS = {torch.float32: (1e-5, 1e-5), torch.float16: (3e-3, 6e-3), torch.bfloat16: (2.4e-2, 6e-2)}
NORMS = ("scalar", "layer")
# Batch, channels, inner channels, length: parts of a tile, several tiles and blocks, odd channels.
SIZES = [(2, 16, 48, 37), (3, 80, 32, 1), (1, 48, 80, 72), (2, 3, 5, 7), (0, 16, 16, 7)]
# Parts of a block, several blocks of input channels, output channels and positions, one position, no batch element.
WIDE_SIZES = [(2, 72, 80, 37), (1, 48, 144, 136), (2, 3, 5, 1), (0, 16, 16, 7)]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_inputs(
    norm: str, batch: int, n_channels: int, n_inner: int, length: int, skip: bool, dtype: torch.dtype
) -> list[Tensor | None]:
    """Return x, with a mean of 1, the parameters of the norm and of both maps, and the skip connection."""
    n_parameters = 1 if norm == "scalar" else n_channels
    return [
        (1 + randn(batch, n_channels, length)).to(dtype),
        1 + randn(n_parameters, seed=1) / 4,
        randn(n_parameters, seed=2),
        randn(n_inner, n_channels, seed=3) / n_channels**0.5,
        randn(n_inner, seed=4),
        randn(n_channels, n_inner, seed=5) / n_inner**0.5,
        randn(n_channels, seed=6),
        randn(batch, n_channels, length, seed=7).to(dtype) if skip else None,
    ]


def run(norm: str, inputs: list[Tensor | None], backend: str, epsilon: float = 1e-5) -> Tensor:
    x, norm_weight, norm_offset, *others = inputs
    return kernels.feed_forward(x, norm, norm_weight, norm_offset, epsilon, *others, backend=backend)


def output_and_gradients(
    norm: str, inputs: list[Tensor | None], backend: str, cotangent: Tensor, epsilon: float = 1e-5
) -> list[Tensor]:
    inputs = [x if x is None else x.detach().requires_grad_() for x in inputs]
    y = run(norm, inputs, backend, epsilon)
    return [y, *torch.autograd.grad(y, [x for x in inputs if x is not None], cotangent.to(y))]


def check(
    assert_close: Callable,
    norm: str,
    backend: str,
    inputs: list[Tensor | None],
    epsilon: float = 1e-5,
) -> None:
    """Compare output and gradients with those of the reference in float64 on the same rounded inputs."""
    x = inputs[0]
    exact = [None if x is None else x.detach().double() for x in inputs]
    y = run(norm, exact, "reference", epsilon)
    # Correlated with what the layer adds, so that no gradient is a small sum of large terms.
    added = y - sum(stream for stream in (exact[0], exact[-1]) if stream is not None)
    cotangent = (added + randn(*y.shape, seed=9).to(y) / 4).to(x.dtype)
    actual = output_and_gradients(norm, inputs, backend, cotangent, epsilon)
    expected = output_and_gradients(norm, exact, "reference", cotangent, epsilon)
    assert [got.dtype for got in actual] == [x.dtype, *(x.dtype for x in inputs if x is not None)]
    for index, (got, wanted) in enumerate(zip(actual, expected, strict=True)):
        assert_close(f"feed_forward[{index}]", got, wanted, *BOUNDS[x.dtype])


@pytest.mark.parametrize("norm", NORMS)
def test_reference_matches_the_definition(norm: str) -> None:
    inputs = [x.double() for x in make_inputs(norm, 2, 3, 5, 7, True, torch.float64)]
    x, norm_weight, norm_offset, input_weight, input_bias, output_weight, output_bias, skip = inputs
    normalize = kernels.scalar_norm if norm == "scalar" else kernels.layer_norm
    y = normalize(x, norm_weight, norm_offset, epsilon=1e-5, backend="reference")
    y = F.gelu(F.conv1d(y, input_weight.unsqueeze(-1), input_bias))
    y = x + F.conv1d(y, output_weight.unsqueeze(-1), output_bias)
    torch.testing.assert_close(run(norm, inputs, "reference"), y + skip)
    torch.testing.assert_close(run(norm, [*inputs[:-1], None], "reference"), y)


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("norm", NORMS)
def test_torch_equals_the_composition(norm: str, batch: int, skip: bool) -> None:
    """The results have every bit of the norm, both maps and the sums one after the other."""
    inputs = make_inputs(norm, batch, 5, 7, 9, skip, torch.float32)

    def composition(norm: str, inputs: list[Tensor | None], backend: str) -> Tensor:
        x, norm_weight, norm_offset, input_weight, input_bias, output_weight, output_bias, skip = inputs
        normalize = kernels.scalar_norm if norm == "scalar" else kernels.layer_norm
        y = normalize(x, norm_weight, norm_offset, epsilon=1e-5, backend=backend)
        y = kernels.pointwise(F.gelu(kernels.pointwise(y, input_weight, input_bias)), output_weight, output_bias)
        y = y.add_(x)
        return y if skip is None else y.add_(skip)

    results = []
    for operation in (composition, run):
        leaves = [None if x is None else x.clone().requires_grad_() for x in inputs]
        y = operation(norm, leaves, "torch")
        results.append([y, *torch.autograd.grad(y.square().sum(), [x for x in leaves if x is not None])])
        with torch.no_grad():
            results[-1].append(operation(norm, inputs, "torch"))
    assert all(torch.equal(got, wanted) for got, wanted in zip(results[1], results[0], strict=True))
    assert y.stride(1) == 1


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_output_and_gradients(
    assert_close: Callable, backend: str, norm: str, sizes: tuple[int, ...], skip: bool, dtype: torch.dtype
) -> None:
    check(assert_close, norm, backend, make_inputs(norm, *sizes, skip, dtype))


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("layout", ["transposed", "sliced", "expanded"])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_strides(assert_close: Callable, backend: str, norm: str, layout: str) -> None:
    strided = {
        "transposed": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
        "sliced": lambda x: x.repeat(2, 1, 3)[::2, :, ::3],
        "expanded": lambda x: x[:1].expand_as(x),
    }[layout]
    inputs = make_inputs(norm, 2, 16, 32, 9, True, torch.float32)
    check(assert_close, norm, backend, [strided(x) if x.ndim == 3 else x for x in inputs])


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_gradients_that_are_not_contiguous(norm: str, backend: str) -> None:
    """The gradient of a sum has strides of zero; the gradient of a transposition is transposed."""
    for cotangent in (torch.ones(()).expand(2, 16, 9), randn(2, 9, 16).transpose(1, 2)):
        inputs = make_inputs(norm, 2, 16, 32, 9, True, torch.float32)
        actual = output_and_gradients(norm, inputs, backend, cotangent)
        expected = output_and_gradients(norm, [x.double() for x in inputs], "reference", cotangent)
        for got, wanted in zip(actual, expected, strict=True):
            torch.testing.assert_close(got.double(), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("value", [0.0, 0.3, -7.123])
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_equal_channels_and_a_tiny_epsilon_give_no_nan(backend: str, value: float) -> None:
    """The scale is 1 / √ε = 10¹⁰; its fourth power overflows float32."""
    inputs = make_inputs("scalar", 2, 16, 32, 9, True, torch.float32)
    inputs[0] = torch.full_like(inputs[0], value)
    inputs[2] = torch.full_like(inputs[2], 1e-9)
    for result in output_and_gradients("scalar", inputs, backend, randn(2, 16, 9, seed=9), epsilon=1e-20):
        assert torch.isfinite(result).all()


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_a_tiny_epsilon_has_the_exact_gradient(assert_close: Callable, backend: str) -> None:
    """Features are so small that ε = 1e-8 would dominate."""
    inputs = make_inputs("scalar", 2, 16, 32, 9, False, torch.float32)
    inputs[0] = 1e-7 * (inputs[0] - 1)
    inputs[2] = torch.full_like(inputs[2], 1e-8)
    check(assert_close, "scalar", backend, inputs, epsilon=1e-20)


def test_arguments_must_fit() -> None:
    x, weight, offset, *linear, skip = make_inputs("layer", 2, 3, 4, 5, True, torch.float32)
    with pytest.raises(ValueError, match=r"unknown norm 'batch': expected one of 'scalar', 'layer'"):
        kernels.feed_forward(x, "batch", weight, offset, 1e-5, *linear, skip)
    with pytest.raises(ValueError, match=r"norm_weight of shape \(1,\), got \(3,\)"):
        kernels.feed_forward(x, "scalar", weight, offset, 1e-5, *linear, skip)
    with pytest.raises(ValueError, match=r"input_weight of shape \(4, 3\), got \(4, 2\)"):
        kernels.feed_forward(x, "layer", weight, offset, 1e-5, linear[0][:, :2], *linear[1:], skip)
    with pytest.raises(ValueError, match=r"output_weight of shape \(3, 4\), got \(4, 3\)"):
        kernels.feed_forward(x, "layer", weight, offset, 1e-5, *linear[:2], linear[0], linear[3], skip)
    with pytest.raises(ValueError, match=r"skip of shape \(2, 3, 5\), got \(1, 3, 5\)"):
        kernels.feed_forward(x, "layer", weight, offset, 1e-5, *linear, skip[:1])


def counted(run_it: Callable[[], object]) -> dict[str, int]:
    from sashimi_kernels.counters import Counter

    with Counter() as counts:
        run_it()
    return {name: operation.launches for name, operation in counts.operations.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_launches(dtype: torch.dtype) -> None:
    """One forward, five backward; two more convert gradients if the parameters are not in float32."""
    x, *parameters, skip = (x.to("meta") for x in make_inputs("layer", 2, 256, 512, 1000, True, torch.bfloat16))
    parameters = [parameter.to(dtype) for parameter in parameters]
    inputs = [tensor.requires_grad_() for tensor in (x, *parameters, skip)]
    y = run("layer", inputs, "triton")
    with torch.no_grad():
        assert counted(lambda: run("layer", inputs, "triton")) == {"triton.feed_forward_kernel": 1}
    backward = counted(lambda: torch.autograd.grad(y, inputs, torch.empty_like(y)))
    expected = {"triton.feed_forward_backward_kernel": 1, "triton.weight_gradient_kernel": 2, "aten.sum": 2}
    cast = {"aten._to_copy": 2} if dtype == torch.bfloat16 else {}
    assert backward == expected | cast


@pytest.fixture
def without_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let all inputs take the path of those that have more channels than a tile."""
    monkeypatch.setattr(
        importlib.import_module("sashimi_kernels.triton_backend.feed_forward"), "fits", lambda *_: False
    )


@pytest.mark.usefixtures("poisoned_memory", "without_tiles")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("sizes", WIDE_SIZES, ids=str)
@pytest.mark.parametrize("norm", NORMS)
def test_any_number_of_channels(
    assert_close: Callable, norm: str, sizes: tuple[int, ...], skip: bool, dtype: torch.dtype
) -> None:
    from sashimi_kernels.triton_backend.launch import recording

    with recording() as launched:
        check(assert_close, norm, "triton", make_inputs(norm, *sizes, skip, dtype))
    names = {"wide_linear_kernel", "weight_gradient_kernel", "_channel_norm_kernel", "_channel_norm_backward_kernel"}
    assert {launch.kernel.__name__ for launch in launched} == (names if sizes[0] else set())


@pytest.mark.usefixtures("without_tiles")
def test_any_number_of_channels_with_parameters_in_the_dtype_of_the_features(assert_close: Callable) -> None:
    inputs = [x.half() for x in make_inputs("layer", 2, 16, 32, 9, True, torch.float16)]
    check(assert_close, "layer", "triton", inputs)


@pytest.mark.parametrize("norm", NORMS)
def test_launches_of_more_channels_than_a_tile(norm: str) -> None:
    """Three forward; eleven or twelve backward, without a cast of a weight."""
    tensors = [x.to("meta") for x in make_inputs(norm, 2, 512, 1024, 1000, True, torch.float32)]
    inputs = [x.to(torch.bfloat16) if x.ndim == 3 else x for x in tensors]
    inputs = [x.detach().requires_grad_() for x in inputs]
    y = run(norm, inputs, "triton")
    with torch.no_grad():
        forward = counted(lambda: run(norm, inputs, "triton"))
    assert forward == {"triton.channel_norm_kernel": 1, "triton.wide_linear_kernel": 2}
    backward = counted(lambda: torch.autograd.grad(y, inputs, torch.empty_like(y)))
    kernels_of_backward = {
        "triton.channel_norm_kernel": 1,
        "triton.wide_linear_kernel": 3,
        "triton.channel_norm_backward_kernel": 1,
        "triton.weight_gradient_kernel": 2,
    }
    sums = {"aten.sum": 3 if norm == "scalar" else 4, "aten.cat": 1}
    assert backward == kernels_of_backward | sums


@pytest.mark.parametrize("norm", NORMS)
def test_more_channels_than_a_tile(assert_close: Callable, norm: str) -> None:
    check(assert_close, norm, "triton", make_inputs(norm, 1, 272, 16, 8, True, torch.float32))


def test_parameters_in_the_dtype_of_the_features(assert_close: Callable) -> None:
    inputs = [x.half() for x in make_inputs("layer", 2, 80, 32, 24, True, torch.float16)]
    check(assert_close, "layer", "triton", inputs)


def test_only_the_gradient_of_the_features() -> None:
    inputs = make_inputs("scalar", 2, 16, 32, 8, True, torch.float32)
    inputs[0].requires_grad_()
    found = (torch.autograd.grad(run("scalar", inputs, name).square().sum(), inputs[0]) for name in ("triton", "torch"))
    torch.testing.assert_close(*(gradients[0] for gradients in found), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_compiled_as_one_graph(backend: str) -> None:
    inputs = [x.requires_grad_() for x in make_inputs("layer", 2, 16, 32, 8, True, torch.float32)]
    x, *_, skip = inputs
    weight, bias = randn(32, 16, seed=8).requires_grad_(), randn(32, seed=9).requires_grad_()

    def layers(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return kernels.gated_linear(run("layer", [x, *inputs[1:]], backend), weight, bias, skip, backend)

    torch.compiler.reset()
    compiled = torch.compile(layers, fullgraph=True, backend="aot_eager")
    found = (
        torch.autograd.grad(f(x, weight, bias).square().sum(), [*inputs, weight, bias]) for f in (layers, compiled)
    )
    for wanted, got in zip(*found, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA or ROCm device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sizes", [(2, 64, 128, 1000), (1, 128, 256, 333), (3, 256, 512, 64), (1, 320, 640, 40)])
@pytest.mark.parametrize("norm", NORMS)
def test_on_a_gpu(assert_close: Callable, norm: str, sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    inputs = [x.cuda() for x in make_inputs(norm, *sizes, True, dtype)]
    check(assert_close, norm, "triton", inputs)
