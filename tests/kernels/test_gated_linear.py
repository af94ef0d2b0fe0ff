"""Tests of the linear map with GELU, gate and residual, and of the plain linear map of the channels."""

import importlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sashimi_kernels as kernels

pytest.importorskip("triton", reason="the triton package is not installed")

BOUNDS = {torch.float32: (1e-5, 1e-5), torch.float16: (2e-3, 4e-3), torch.bfloat16: (1.6e-2, 4e-2)}
# Batch, input channels, output channels, length: parts of a tile, several tiles and blocks, odd channels.
SIZES = [(2, 16, 48, 37), (3, 80, 32, 1), (1, 48, 80, 136), (2, 3, 5, 7), (0, 16, 16, 7)]
# Parts of a block, several blocks of input channels, output channels and positions, one position, no batch element.
WIDE_SIZES = [(2, 72, 80, 37), (1, 48, 144, 136), (2, 3, 5, 1), (0, 16, 16, 7)]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_inputs(
    batch: int, n_inputs: int, n_outputs: int, length: int, residual: bool, dtype: torch.dtype
) -> list[Tensor | None]:
    weight = randn(2 * n_outputs, n_inputs, seed=1) / n_inputs**0.5
    stream = randn(batch, n_outputs, length, seed=3).to(dtype) if residual else None
    return [randn(batch, n_inputs, length).to(dtype), weight, randn(2 * n_outputs, seed=2), stream]


def output_and_gradients(inputs: list[Tensor | None], backend: str, cotangent: Tensor) -> list[Tensor]:
    inputs = [x if x is None else x.detach().requires_grad_() for x in inputs]
    y = kernels.gated_linear(*inputs, backend=backend)
    return [y, *torch.autograd.grad(y, [x for x in inputs if x is not None], cotangent.to(y))]


def check(assert_close: Callable, backend: str, inputs: list[Tensor | None]) -> None:
    """Compare output and gradients with those of the reference in float64 on the same rounded inputs."""
    x = inputs[0]
    exact = [None if x is None else x.detach().double() for x in inputs]
    y = kernels.gated_linear(*exact, backend="reference")
    # Correlated with the output, so that no gradient is a small sum of large terms.
    cotangent = (y / 2 + randn(*y.shape, seed=9).to(y)).to(x.dtype)
    actual, expected = (
        output_and_gradients(inputs, backend, cotangent),
        output_and_gradients(exact, "reference", cotangent),
    )
    assert [got.dtype for got in actual] == [x.dtype, *(x.dtype for x in inputs if x is not None)]
    for index, (got, wanted) in enumerate(zip(actual, expected, strict=True)):
        assert_close(f"gated_linear[{index}]", got, wanted, *BOUNDS[x.dtype])


def test_reference_matches_the_definition() -> None:
    x, weight, bias, residual = (x.double() for x in make_inputs(2, 3, 5, 7, True, torch.float64))
    a, b = F.conv1d(F.gelu(x), weight.unsqueeze(-1), bias).chunk(2, dim=1)
    actual = kernels.gated_linear(x, weight, bias, residual, backend="reference")
    torch.testing.assert_close(actual, residual + a * torch.sigmoid(b))
    actual = kernels.gated_linear(x, weight, bias, backend="reference")
    torch.testing.assert_close(actual, a * torch.sigmoid(b))


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("batch", [1, 2])
def test_torch_equals_the_composition(batch: int, residual: bool) -> None:
    """The results have every bit of GELU, ``F.linear`` and ``gated_residual`` one after the other."""
    inputs = make_inputs(batch, 6, 5, 9, residual, torch.float32)

    def composition(x: Tensor, weight: Tensor, bias: Tensor, stream: Tensor | None, backend: str) -> Tensor:
        y = F.linear(F.gelu(x).transpose(1, 2).squeeze(0), weight, bias)
        y = (y.unsqueeze(0) if batch == 1 else y).transpose(1, 2)
        return F.glu(y, dim=1) if stream is None else kernels.gated_residual(y, stream, backend)

    results = []
    for operation in (composition, kernels.gated_linear):
        leaves = [None if x is None else x.clone().requires_grad_() for x in inputs]
        y = operation(*leaves, backend="torch")
        results.append([y, *torch.autograd.grad(y.square().sum(), [x for x in leaves if x is not None])])
        with torch.no_grad():
            x, *others = inputs
            results[-1].append(operation(x.clone(), *others, backend="torch"))
    assert all(torch.equal(got, wanted) for got, wanted in zip(results[1], results[0], strict=True))
    assert results[1][0].stride()[1:] == results[0][0].stride()[1:]


@pytest.mark.parametrize("batch", [1, 2])
def test_pointwise_maps_the_channels(batch: int) -> None:
    x, weight, bias = randn(batch, 3, 7), randn(5, 3, seed=1), randn(5, seed=2)
    y = kernels.pointwise(x, weight, bias)
    torch.testing.assert_close(y, F.conv1d(x, weight.unsqueeze(-1), bias))
    assert y.stride(1) == 1


def test_pointwise_on_a_device_is_one_product_with_a_contiguous_result() -> None:
    from sashimi_kernels.torch_backend import pointwise as module

    inputs = [x.requires_grad_() for x in (randn(2, 3, 7), randn(5, 3, seed=1), randn(5, seed=2))]
    y = module._contiguous_pointwise(*inputs)
    expected = kernels.pointwise(*inputs)
    assert y.is_contiguous()
    torch.testing.assert_close(y, expected)
    for got, wanted in zip(*(torch.autograd.grad(y.square().sum(), inputs) for y in (y, expected)), strict=True):
        torch.testing.assert_close(got, wanted)
    assert kernels.pointwise(*(x.detach().to("meta") for x in inputs)).is_contiguous()
    with torch.autocast("cpu", torch.bfloat16):
        y = module._contiguous_pointwise(*inputs)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), expected, rtol=2e-2, atol=2e-2)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_output_and_gradients(
    assert_close: Callable, backend: str, sizes: tuple[int, ...], residual: bool, dtype: torch.dtype
) -> None:
    inputs = make_inputs(*sizes, residual, dtype)
    check(assert_close, backend, inputs)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("layout", ["transposed", "sliced", "expanded"])
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_strides(assert_close: Callable, backend: str, layout: str) -> None:
    strided = {
        "transposed": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
        "sliced": lambda x: x.repeat(2, 1, 3)[::2, :, ::3],
        "expanded": lambda x: x[:1].expand_as(x),
    }[layout]
    inputs = [strided(x) if x.ndim == 3 else x for x in make_inputs(2, 16, 32, 9, True, torch.float32)]
    check(assert_close, backend, inputs)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_gradients_that_are_not_contiguous(backend: str) -> None:
    """The gradient of a sum has strides of zero; the gradient of a transposition is transposed."""
    for cotangent in (torch.ones(()).expand(2, 32, 9), randn(2, 9, 32).transpose(1, 2)):
        inputs = make_inputs(2, 16, 32, 9, True, torch.float32)
        actual = output_and_gradients(inputs, backend, cotangent)
        expected = output_and_gradients([x.double() for x in inputs], "reference", cotangent)
        for got, wanted in zip(actual, expected, strict=True):
            torch.testing.assert_close(got.double(), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("backend", "dtype"), [("torch", torch.bfloat16), ("triton", torch.float16)], ids=str)
def test_autocast(backend: str, dtype: torch.dtype) -> None:
    """A residual stream in float32 stays in float32 for every dtype of the layers."""
    torch.manual_seed(0)
    mix, x, residual = nn.Linear(3, 10), randn(2, 3, 7), randn(2, 5, 7, seed=1)
    expected = kernels.gated_linear(x, mix.weight, mix.bias, residual, backend)
    with torch.autocast("cpu", dtype):
        y = kernels.gated_linear(x, mix.weight, mix.bias, residual, backend)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, expected, rtol=0.05, atol=0.05)
    y.sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in mix.parameters())


def test_shapes_must_fit() -> None:
    x, weight, bias, residual = make_inputs(2, 3, 4, 5, True, torch.float32)
    with pytest.raises(ValueError, match=r"weight of shape \(8, 3\), got \(8, 2\)"):
        kernels.gated_linear(x, weight[:, :2], bias, residual)
    with pytest.raises(ValueError, match=r"weight of shape \(6, 3\), got \(7, 3\)"):
        kernels.gated_linear(x, weight[:7], bias, residual)
    with pytest.raises(ValueError, match=r"bias of shape \(8,\), got \(7,\)"):
        kernels.gated_linear(x, weight, bias[:7], residual)
    with pytest.raises(ValueError, match=r"residual of shape \(2, 4, 5\), got \(1, 4, 5\)"):
        kernels.gated_linear(x, weight, bias, residual[:1])
    with pytest.raises(ValueError, match=r"weight of shape \(8, 3\), got \(8, 2\)"):
        kernels.pointwise(x, weight[:, :2], bias)


def counted(run: Callable[[], object]) -> dict[str, int]:
    from sashimi_kernels.counters import Counter

    with Counter() as counts:
        run()
    return {name: operation.launches for name, operation in counts.operations.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_launches(dtype: torch.dtype) -> None:
    """One forward, three backward; one more converts gradients if the parameters are not in float32."""
    x, weight, bias, residual = (
        parameter.to("meta").requires_grad_() for parameter in make_inputs(2, 256, 256, 1000, True, torch.bfloat16)
    )
    weight, bias = (parameter.detach().to(dtype).requires_grad_() for parameter in (weight, bias))
    y = kernels.gated_linear(x, weight, bias, residual, "triton")
    with torch.no_grad():
        forward = counted(lambda: kernels.gated_linear(x, weight, bias, residual, "triton"))
    assert forward == {"triton.gated_linear_kernel": 1}
    backward = counted(lambda: torch.autograd.grad(y, (x, weight, bias, residual), torch.empty_like(y)))
    expected = {"triton.gated_linear_backward_kernel": 1, "triton.weight_gradient_kernel": 1, "aten.sum": 1}
    cast = {"aten._to_copy": 1} if dtype == torch.bfloat16 else {}
    assert backward == expected | cast


@pytest.fixture
def without_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let all inputs take the path of those that have more channels than a tile."""
    monkeypatch.setattr(
        importlib.import_module("sashimi_kernels.triton_backend.gated_linear"), "fits", lambda *_: False
    )


@pytest.mark.usefixtures("poisoned_memory", "without_tiles")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("sizes", WIDE_SIZES, ids=str)
def test_any_number_of_channels(
    assert_close: Callable, sizes: tuple[int, ...], residual: bool, dtype: torch.dtype
) -> None:
    from sashimi_kernels.triton_backend.launch import recording

    with recording() as launched:
        check(assert_close, "triton", make_inputs(*sizes, residual, dtype))
    names = {"wide_linear_kernel", "weight_gradient_kernel"}
    assert {launch.kernel.__name__ for launch in launched} == (names if sizes[0] else set())


@pytest.mark.usefixtures("without_tiles")
def test_any_number_of_channels_with_parameters_in_the_dtype_of_the_features(assert_close: Callable) -> None:
    inputs = [x.half() for x in make_inputs(2, 16, 32, 9, True, torch.float16)]
    check(assert_close, "triton", inputs)


def test_launches_of_more_channels_than_a_tile() -> None:
    """One forward and four backward, without a cast of a weight."""
    tensors = [x.to("meta") for x in make_inputs(2, 512, 512, 1000, True, torch.float32)]
    x, weight, bias, residual = (x.to(torch.bfloat16) if x.ndim == 3 else x for x in tensors)
    inputs = [x.detach().requires_grad_() for x in (x, weight, bias, residual)]
    y = kernels.gated_linear(*inputs, "triton")
    with torch.no_grad():
        assert counted(lambda: kernels.gated_linear(*inputs, "triton")) == {"triton.wide_linear_kernel": 1}
    backward = counted(lambda: torch.autograd.grad(y, inputs, torch.empty_like(y)))
    assert backward == {"triton.wide_linear_kernel": 2, "triton.weight_gradient_kernel": 1, "aten.sum": 1}


def test_more_channels_than_a_tile(assert_close: Callable) -> None:
    check(assert_close, "triton", make_inputs(1, 272, 16, 8, True, torch.float32))


def test_parameters_in_the_dtype_of_the_features(assert_close: Callable) -> None:
    inputs = [x.half() for x in make_inputs(2, 80, 16, 24, True, torch.float16)]
    check(assert_close, "triton", inputs)


def test_addresses_that_are_not_multiples_of_16(assert_close: Callable) -> None:
    inputs = make_inputs(2, 16, 16, 8, True, torch.float32)
    memory = [torch.empty(x.numel() + 1) for x in inputs]
    moved = [place[1:].view_as(x).copy_(x) for x, place in zip(inputs, memory, strict=True)]
    check(assert_close, "triton", moved)


def test_gradients_do_not_change_from_run_to_run() -> None:
    inputs = make_inputs(3, 48, 16, 72, True, torch.float32)
    first, second = (output_and_gradients(inputs, "triton", randn(3, 16, 72, seed=9)) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


def test_only_the_gradient_of_the_features() -> None:
    x, weight, bias, residual = make_inputs(2, 16, 16, 8, True, torch.float32)
    x.requires_grad_()
    y = kernels.gated_linear(x, weight, bias, residual, "triton")
    (actual,) = torch.autograd.grad(y.square().sum(), x)
    y = kernels.gated_linear(x, weight, bias, residual, "reference")
    torch.testing.assert_close(actual, torch.autograd.grad(y.square().sum(), x)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA or ROCm device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sizes", [(2, 64, 64, 1000), (1, 128, 128, 333), (3, 256, 256, 64), (1, 320, 320, 40)])
def test_on_a_gpu(assert_close: Callable, sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    check(assert_close, "triton", [x.cuda() for x in make_inputs(*sizes, True, dtype)])
