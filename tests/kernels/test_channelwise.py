"""Tests of norms over channels and of the gated residual: outputs and gradients of every backend in float64."""

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import sashimi_kernels as kernels

pytest.importorskip("triton", reason="the triton package is not installed")

# Fewer channels than a block, exactly one block, several blocks; one tile of positions and several tiles.
SIZES = [(2, 3, 70), (1, 64, 33), (2, 65, 5), (1, 300, 2), (0, 3, 5)]
BOUNDS = {torch.float32: (1e-5, 1e-5), torch.float16: (1e-3, 2e-3), torch.bfloat16: (8e-3, 2e-2)}
DTYPES = (torch.float32, torch.float16)
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA or ROCm device")


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def norm_inputs(norm: str, batch: int, n_channels: int, length: int, bias: bool) -> list[Tensor | None]:
    """Return x, the two parameters of the norm and the bias; x has a mean of 3."""
    n_parameters = 1 if norm == "scalar_norm" else n_channels
    parameters = [1 + randn(n_parameters, seed=1) / 4, randn(n_parameters, seed=2)]
    return [3 + randn(batch, n_channels, length), *parameters, randn(batch, n_channels, seed=3) if bias else None]


def gated_inputs(batch: int, n_channels: int, length: int) -> list[Tensor]:
    return [randn(batch, 2 * n_channels, length), randn(batch, n_channels, length, seed=1)]


def output_and_gradients(
    operation: Callable[..., Tensor], inputs: list[Tensor | None], backend: str, cotangent: Tensor
) -> list[Tensor]:
    inputs = [x if x is None else x.detach().requires_grad_() for x in inputs]
    y = operation(*inputs, backend=backend)
    given = [x for x in inputs if x is not None]
    return [y, *torch.autograd.grad(y, given, cotangent.to(y))]


def check(assert_close: Callable, name: str, backend: str, inputs: list[Tensor | None]) -> None:
    """Compare the operation with the reference in float64 on the same rounded inputs."""
    operation = getattr(kernels, name)
    exact = [x if x is None else x.detach().double() for x in inputs]
    given = [x for x in inputs if x is not None]
    # The output has the dtype of the residual stream.
    stream = inputs[1] if name == "gated_residual" else inputs[0]
    y = operation(*exact, backend="reference")
    # Correlated with the output, so that no gradient is a small sum of large terms.
    cotangent = (y / 2 + randn(*y.shape, seed=9).to(y)).to(stream.dtype)
    actual = output_and_gradients(operation, inputs, backend, cotangent)
    expected = output_and_gradients(operation, exact, "reference", cotangent)
    assert [got.dtype for got in actual] == [stream.dtype, *(x.dtype for x in given)]
    bounds = max(BOUNDS[x.dtype] for x in given)
    for index, (got, wanted) in enumerate(zip(actual, expected, strict=True)):
        assert_close(f"{name}[{index}]", got, wanted, *bounds)


@pytest.mark.parametrize("norm", ["scalar_norm", "layer_norm"])
def test_reference_norms_match_the_definitions(norm: str) -> None:
    x, weight, offset, bias = (x.double() for x in norm_inputs(norm, 2, 5, 7, bias=True))
    if norm == "layer_norm":
        expected = F.layer_norm(x.transpose(1, 2), (5,), weight, offset).transpose(1, 2)
    else:
        expected = weight * (x - x.mean(1, keepdim=True) + offset) / x.var(1, correction=0, keepdim=True).sqrt()
    actual = getattr(kernels, norm)(x, weight, offset, bias, backend="reference")
    torch.testing.assert_close(actual, expected + bias.unsqueeze(-1), rtol=1e-6, atol=1e-7)


def test_reference_gated_residual_matches_the_definition() -> None:
    x, residual = (x.double() for x in gated_inputs(2, 5, 7))
    expected = residual + F.glu(x, dim=1)
    torch.testing.assert_close(kernels.gated_residual(x, residual, backend="reference"), expected)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("batch", "n_channels", "length"), SIZES)
@pytest.mark.parametrize("norm", ["scalar_norm", "layer_norm"])
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_norms(
    assert_close: Callable,
    backend: str,
    norm: str,
    batch: int,
    n_channels: int,
    length: int,
    bias: bool,
    dtype: torch.dtype,
) -> None:
    x, *parameters = norm_inputs(norm, batch, n_channels, length, bias)
    check(assert_close, norm, backend, [x.to(dtype), *parameters])


@pytest.mark.parametrize("backend", ["reference", "torch", "triton"])
@pytest.mark.parametrize("norm", ["scalar", "layer"])
@pytest.mark.parametrize("used", ["both", "norm", "residual"])
@pytest.mark.parametrize("has_bias", [False, True])
def test_norm_and_residual(backend: str, norm: str, used: str, has_bias: bool) -> None:
    """Outputs and gradients are those of the norm and of a residual connection around it."""
    x, weight, offset, bias = norm_inputs(f"{norm}_norm", 2, 5, 24, bias=True)
    # Biases of several layers in one tensor; the gradient of the residual has rows with padding.
    inputs = [x, weight, offset, *([torch.cat([bias, bias], dim=1)] if has_bias else [])]
    weights = [randn(2, 5, 24, seed=5), randn(2, 5, 32, seed=6)[..., :24]]
    results = []
    for fused in (True, False):
        leaves = [leaf.clone().requires_grad_() for leaf in inputs]
        arguments = [*leaves[:3], leaves[3].split(5, dim=1)[1] if has_bias else None]
        if fused:
            outputs = kernels.norm_and_residual(arguments[0], norm, *arguments[1:], 1e-5, backend)
        else:
            outputs = getattr(kernels, f"{norm}_norm")(*arguments, 1e-5, backend="reference"), arguments[0]
        chosen = [
            u * y for name, u, y in zip(("norm", "residual"), weights, outputs, strict=True) if used in ("both", name)
        ]
        results.append((outputs, torch.autograd.grad(sum(part.sum() for part in chosen), leaves, allow_unused=True)))
    (outputs, gradients), (expected_outputs, expected_gradients) = results
    for actual, expected in zip((*outputs, *gradients), (*expected_outputs, *expected_gradients), strict=True):
        assert (actual is None) == (expected is None)
        if expected is not None:
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_norm_and_residual_refuses_unknown_norms() -> None:
    with pytest.raises(ValueError, match="unknown norm 'group': expected one of 'scalar', 'layer'"):
        kernels.norm_and_residual(torch.ones(1, 2, 3), "group", torch.ones(2), torch.ones(2))


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("dtypes", [(a, b) for a in DTYPES for b in DTYPES], ids=str)
@pytest.mark.parametrize(("batch", "n_channels", "length"), [(2, 3, 130), (1, 17, 1), (0, 3, 5)])
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_gated_residual(
    assert_close: Callable, backend: str, batch: int, n_channels: int, length: int, dtypes: tuple[torch.dtype, ...]
) -> None:
    inputs = gated_inputs(batch, n_channels, length)
    check(assert_close, "gated_residual", backend, [x.to(dtype) for x, dtype in zip(inputs, dtypes, strict=True)])


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("layout", ["transposed", "sliced", "expanded"])
@pytest.mark.parametrize("name", ["scalar_norm", "layer_norm", "gated_residual"])
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_strides(assert_close: Callable, backend: str, name: str, layout: str) -> None:
    inputs = gated_inputs(2, 5, 9) if name == "gated_residual" else norm_inputs(name, 2, 5, 9, bias=True)
    strided = {
        "transposed": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
        "sliced": lambda x: x.repeat(2, 1, 3)[::2, :, ::3],
        "expanded": lambda x: x[:1].expand_as(x),
    }[layout]
    inputs = [x if x is None or x.ndim < 3 else strided(x) for x in inputs]
    check(assert_close, name, backend, inputs)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("name", ["scalar_norm", "layer_norm", "gated_residual"])
def test_gradients_that_are_not_contiguous(assert_close: Callable, name: str) -> None:
    """The gradient of a sum has strides of zero; the gradient of a transposition is transposed."""
    inputs = gated_inputs(2, 5, 9) if name == "gated_residual" else norm_inputs(name, 2, 5, 9, bias=True)
    exact = [x.double() for x in inputs]
    operation = getattr(kernels, name)
    for cotangent in (torch.ones(()).expand(2, 5, 9), randn(2, 9, 5).transpose(1, 2)):
        actual = output_and_gradients(operation, inputs, "triton", cotangent)
        expected = output_and_gradients(operation, exact, "reference", cotangent)
        for index, (got, wanted) in enumerate(zip(actual, expected, strict=True)):
            torch.testing.assert_close(got.double(), wanted, rtol=1e-4, atol=1e-4, msg=f"{name}[{index}]")


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_one_channel_equals_its_mean(backend: str) -> None:
    x, weight, offset, bias = norm_inputs("layer_norm", 2, 1, 3, bias=True)
    x.requires_grad_()
    y = kernels.layer_norm(x, weight, offset, bias, backend=backend)
    y.square().sum().backward()
    torch.testing.assert_close(y, (offset + bias).unsqueeze(-1).expand_as(y))
    torch.testing.assert_close(x.grad, torch.zeros_like(x), rtol=0, atol=1e-4)
    # The scale is 1 / √epsilon here.
    y = kernels.scalar_norm(x, weight, offset, bias, backend=backend)
    torch.testing.assert_close(y, (weight * offset * 1e4 + bias).unsqueeze(-1).expand_as(y))


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("norm", ["scalar_norm", "layer_norm"])
def test_equal_channels_give_no_nan(norm: str, backend: str) -> None:
    x, weight, offset, bias = norm_inputs(norm, 1, 130, 3, bias=True)
    x = torch.zeros_like(x).requires_grad_()
    y = getattr(kernels, norm)(x, weight, offset, bias, backend=backend)
    y.sum().backward()
    assert torch.isfinite(y).all()
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("value", [0.0, 0.3, -7.123, 1e-20])
@pytest.mark.parametrize("n_channels", [1, 3, 64, 130])
@pytest.mark.parametrize("backend", ["reference", "torch", "triton"])
def test_a_tiny_epsilon_gives_no_nan(backend: str, n_channels: int, value: float, dtype: torch.dtype) -> None:
    """Equal channels have a scale of up to 1 / √ε = 10¹⁵; its third power overflows float32."""
    if backend == "triton" and dtype == torch.float64:
        pytest.skip("the triton backend has no float64")
    _, gain, shift, bias = norm_inputs("scalar_norm", 2, n_channels, 5, bias=True)
    x = torch.full((2, n_channels, 5), value, dtype=dtype)
    inputs = [x, *((parameter.double() if dtype == torch.float64 else parameter) for parameter in (gain, shift, bias))]
    results = output_and_gradients(
        lambda *inputs, backend: kernels.scalar_norm(*inputs, epsilon=1e-30, backend=backend),
        inputs,
        backend,
        randn(2, n_channels, 5, seed=9),
    )
    for result in results:
        assert torch.isfinite(result).all()


@pytest.mark.parametrize("n_channels", [3, 130])
@pytest.mark.parametrize("backend", ["reference", "torch", "triton"])
def test_a_tiny_epsilon_has_the_exact_gradient(assert_close: Callable, backend: str, n_channels: int) -> None:
    """The gradient is tested for equal channels and for features so small that ε = 1e-8 would dominate."""
    _, gain, shift, bias = norm_inputs("scalar_norm", 2, n_channels, 5, bias=True)
    operation = functools.partial(kernels.scalar_norm, epsilon=1e-30)
    cotangent = randn(2, n_channels, 5, seed=9)
    for x in (torch.zeros(2, n_channels, 5), 1e-7 * randn(2, n_channels, 5)):
        actual = output_and_gradients(operation, [x, gain, shift, bias], backend, cotangent)
        exact = [parameter.double() for parameter in (x, gain, shift, bias)]
        expected = output_and_gradients(operation, exact, "reference", cotangent)
        for index, (got, wanted) in enumerate(zip(actual, expected, strict=True)):
            assert_close(str(index), got, wanted, 1e-5, 1e-5)


@pytest.mark.parametrize("n_channels", [60, 200])
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_a_large_mean_adds_only_its_rounding_error(backend: str, n_channels: int) -> None:
    """E[x²] - mean² would have no correct digit in float32: 10⁸ against 1."""
    x, weight, offset, _ = norm_inputs("layer_norm", 1, n_channels, 4, bias=False)
    x = x + 1e4
    expected = kernels.layer_norm(x.double(), weight.double(), offset.double(), backend="reference")
    actual = kernels.layer_norm(x, weight, offset, backend=backend)
    assert (actual - expected).abs().max() < 5e-3


@pytest.mark.parametrize("name", ["scalar_norm", "layer_norm", "gated_residual"])
def test_torch_gradients(name: str) -> None:
    inputs = gated_inputs(2, 3, 4) if name == "gated_residual" else norm_inputs(name, 2, 3, 4, bias=True)
    inputs = [x.double().requires_grad_() for x in inputs]
    assert torch.autograd.gradcheck(lambda *inputs: getattr(kernels, name)(*inputs, backend="torch"), inputs)


class ThreeOperations(torch.nn.Module):
    """Module that applies the three operations one after the other."""

    def __init__(self, backend: str) -> None:
        super().__init__()
        self.backend = backend
        self.gain, self.shift = torch.nn.Parameter(torch.ones(1)), torch.nn.Parameter(torch.zeros(1))
        self.weight, self.offset = torch.nn.Parameter(1 + randn(3)), torch.nn.Parameter(randn(3))
        self.mix = torch.nn.Conv1d(3, 6, 1)
        torch.nn.init.constant_(self.mix.weight, 0.3)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        y = kernels.scalar_norm(x, self.gain, self.shift, bias, backend=self.backend)
        y = kernels.layer_norm(y, self.weight, self.offset, backend=self.backend)
        return kernels.gated_residual(self.mix(y), x, backend=self.backend)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_compiled_as_one_graph(assert_close: Callable, backend: str) -> None:
    torch.manual_seed(0)
    module, x, bias = ThreeOperations(backend), randn(2, 3, 7).requires_grad_(), randn(2, 3, seed=1).requires_grad_()
    inputs, cotangent = [x, bias, *module.parameters()], randn(2, 3, 7, seed=2)
    expected = torch.autograd.grad(module(x, bias), inputs, cotangent)
    torch.compiler.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    actual = torch.autograd.grad(compiled(x, bias), inputs, cotangent)
    for got, wanted in zip(actual, expected, strict=True):
        assert_close("gradient", got, wanted, 1e-5, 1e-5)
    with torch.no_grad():
        assert_close("output", compiled(x, bias), module(x, bias), 1e-6, 1e-6)


@pytest.mark.parametrize(("backend", "dtype"), [("torch", torch.bfloat16), ("triton", torch.float16)], ids=str)
def test_autocast(backend: str, dtype: torch.dtype) -> None:
    """A residual stream in float32 stays in float32 for every dtype of the layers."""
    torch.manual_seed(0)
    module, x, bias = ThreeOperations(backend), randn(2, 3, 7), randn(2, 3, seed=1)
    expected = module(x, bias)
    with torch.autocast("cpu", dtype):
        actual = module(x, bias.to(dtype))
    assert actual.dtype == torch.float32
    assert (actual - expected).abs().max() < 0.05 * expected.abs().max()
    actual.sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in module.parameters())


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("name", ["scalar_norm", "layer_norm", "gated_residual"])
def test_inference_does_not_change_the_inputs(name: str, backend: str) -> None:
    inputs = gated_inputs(1, 3, 4) if name == "gated_residual" else norm_inputs(name, 1, 3, 4, bias=True)
    before = [x.clone() for x in inputs]
    with torch.no_grad():
        getattr(kernels, name)(*inputs, backend=backend)
    assert all(torch.equal(x, y) for x, y in zip(inputs, before, strict=True))


def test_shapes_must_fit() -> None:
    x, gain, shift, bias = norm_inputs("scalar_norm", 2, 3, 4, bias=True)
    with pytest.raises(ValueError, match=r"bias of shape \(2, 3\), got \(1, 3\)"):
        kernels.scalar_norm(x, gain, shift, bias[:1])
    with pytest.raises(ValueError, match=r"weight of shape \(3,\), got \(1,\)"):
        kernels.layer_norm(x, gain, shift)
    with pytest.raises(ValueError, match=r"x of shape \(2, 6, 4\), got \(2, 3, 4\)"):
        kernels.gated_residual(x, x)


def test_triton_refuses_float64() -> None:
    x, gain, shift, _ = norm_inputs("scalar_norm", 2, 3, 4, bias=False)
    with pytest.raises(kernels.BackendUnavailableError, match="float64"):
        kernels.scalar_norm(x.double(), gain.double(), shift.double(), backend="triton")


def test_triton_refuses_offsets_beyond_32_bits() -> None:
    from sashimi_kernels.triton_backend.arguments import strides

    with pytest.raises(ValueError, match="more than 2³¹ elements"):
        strides("x", torch.empty(1, 3, 2**30, device="meta"))


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("batch", "n_channels", "length"), [(2, 64, 1000), (1, 129, 37), (3, 600, 64)])
@pytest.mark.parametrize("name", ["scalar_norm", "layer_norm", "gated_residual"])
def test_on_a_gpu(
    assert_close: Callable, name: str, batch: int, n_channels: int, length: int, dtype: torch.dtype
) -> None:
    if name == "gated_residual":
        inputs = [x.to(dtype) for x in gated_inputs(batch, n_channels, length)]
    else:
        x, *parameters = norm_inputs(name, batch, n_channels, length, bias=True)
        inputs = [x.to(dtype), *parameters]
    check(assert_close, name, "triton", [x.cuda() for x in inputs])
