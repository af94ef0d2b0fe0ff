"""Tests of the S4 layer of the oldest official code: kernel, directions, FFT nodes, precision."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import sashimi_diffusion.ssm.legacy_s4 as module
from sashimi_diffusion.ssm import frozen
from sashimi_diffusion.ssm.legacy_s4 import LegacyS4, LegacyStateSpace
from sashimi_kernels.discretization import discretize_nplr, real_matrix, real_output, real_vector


def make(d_model: int = 3, length: int = 16, n_state: int = 8, stored_nodes: bool = False) -> LegacyStateSpace:
    """Return a state space in which q differs from p, as after training."""
    torch.manual_seed(0)
    ssm = LegacyStateSpace(d_model, length, n_state, stored_nodes)
    with torch.no_grad():
        ssm.Q += 0.1 * torch.randn_like(ssm.Q)
    return ssm


def dense_kernel(ssm: LegacyStateSpace) -> Tensor:
    """Return K[t] = C̃ (I - Ā^L)⁻¹ Ā^t B̄ of both directions, from dense float64 matrices: (2, H, L)."""
    directions = []
    for direction in range(2):
        a, b, p = (torch.view_as_complex(x[direction].double()).unsqueeze(0) for x in (ssm.A, ssm.B, ssm.P))
        c, q = (torch.view_as_complex(x[direction].double()).conj() for x in (ssm.C, ssm.Q))
        dt = ssm.log_dt[direction].double().exp().unsqueeze(-1)
        system = discretize_nplr(dt, a, p.expand_as(q), q, b)
        matrix = real_matrix(system)  # (H, 2N, 2N)
        correction = torch.eye(matrix.shape[-1]) - torch.linalg.matrix_power(matrix, ssm.length)
        row = torch.linalg.solve(correction.mT, real_output(c).unsqueeze(-1)).mT  # (H, 1, 2N)
        column, values = real_vector(system.b).unsqueeze(-1), []
        for _ in range(ssm.length):
            values.append((row @ column).flatten())
            column = matrix @ column
        directions.append(torch.stack(values, dim=-1))
    return torch.stack(directions)


@torch.no_grad()
@pytest.mark.parametrize(("length", "n_state"), [(2, 2), (16, 8), (250, 64)])
def test_kernel_matches_the_dense_definition(length: int, n_state: int) -> None:
    ssm = make(length=length, n_state=n_state)
    expected = dense_kernel(ssm)
    for dtype, tolerance in ((torch.float32, 3e-7), (torch.float64, 1e-9)):
        kernel = ssm.to(dtype).kernel()
        assert kernel.dtype == dtype
        assert (kernel - expected).abs().max() < tolerance * expected.abs().max()


@torch.no_grad()
def test_tiles_do_not_change_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    ssm = make(d_model=5)
    whole = ssm.kernel()
    monkeypatch.setattr(module, "TILE", 1)
    assert torch.allclose(ssm.kernel(), whole, rtol=0, atol=1e-6)


def test_training_stores_no_tensor_of_the_size_of_all_terms(monkeypatch: pytest.MonkeyPatch) -> None:
    ssm, sizes = make(d_model=6, length=512, n_state=64), []
    monkeypatch.setattr(module, "TILE", 1)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
        kernel = ssm.kernel()
    assert kernel.requires_grad
    assert 0 < max(sizes) <= 2 * 6 * 512


def test_gradients() -> None:
    ssm = make(d_model=2, length=6, n_state=4).double()

    def kernel(c: Tensor, q: Tensor) -> Tensor:
        return torch.func.functional_call(_Kernel(ssm), {"ssm.C": c, "ssm.Q": q}, ())

    inputs = [x.detach().clone().requires_grad_() for x in (ssm.C, ssm.Q)]
    assert torch.autograd.gradcheck(kernel, inputs)


class _Kernel(torch.nn.Module):
    def __init__(self, ssm: LegacyStateSpace) -> None:
        super().__init__()
        self.ssm = ssm

    def forward(self) -> Tensor:
        return self.ssm.kernel()


@torch.no_grad()
@pytest.mark.parametrize("length", [16, 10, 21])
def test_both_directions_include_lag_zero_and_kernels_end_at_their_length(length: int) -> None:
    ssm = make().double().eval()
    u = torch.randn(2, 3, length, dtype=torch.float64)
    causal, reverse = ssm.kernel()
    expected = torch.zeros(2, 2, 3, length, dtype=torch.float64)
    for t in range(length):
        for j in range(ssm.length):
            if t - j >= 0:
                expected[:, 0, :, t] += causal[:, j] * u[..., t - j]
            if t + j < length:
                expected[:, 1, :, t] += reverse[:, j] * u[..., t + j]
    expected += ssm.D.unsqueeze(-1) * u.unsqueeze(1)
    torch.testing.assert_close(ssm(u), expected.flatten(1, 2))


@torch.no_grad()
def test_stored_nodes_are_used() -> None:
    exact, stored = make().eval(), make(stored_nodes=True).eval()
    assert stored.state_dict().keys() - exact.state_dict().keys() == {"omega", "z"}
    stored.load_state_dict(exact.state_dict(), strict=False)
    u = torch.randn(1, 3, 16)
    expected = exact(u)
    torch.testing.assert_close(stored(u), expected)  # exact nodes in single precision
    # A rounded root of unity is close to -1 but not equal to it; the result must be close to the limit there.
    root = torch.tensor(-1 + 1e-7j, dtype=torch.complex128)
    stored.omega[:, -1] = torch.view_as_real(root)
    stored.z[:, -1] = torch.view_as_real(2 * (1 - root) / (1 + root))
    torch.testing.assert_close(stored(u), expected)
    stored.z *= 1.01
    assert (stored(u) - expected).abs().max() > 1e-4


@torch.no_grad()
def test_stored_nodes_stay_float32_and_are_saved() -> None:
    layer = LegacyS4(3, 16, n_state=8, stored_nodes=True).bfloat16()
    assert layer.ssm.omega.dtype == layer.ssm.z.dtype == torch.float32
    assert {"ssm.omega", "ssm.z"} <= layer.state_dict().keys()


@torch.no_grad()
def test_a_frozen_layer_keeps_its_kernels_until_something_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    ssm, calls = make().eval(), []
    original = LegacyStateSpace.kernel
    monkeypatch.setattr(LegacyStateSpace, "kernel", lambda self: calls.append(1) or original(self))
    u = torch.randn(1, 3, 16)
    with frozen(ssm):
        first = ssm(u)
        assert torch.equal(ssm(u), first)
        assert len(calls) == 1
        ssm(u[..., :8])
        assert len(calls) == 2
        ssm.C.mul_(2)
        assert not torch.allclose(ssm(u), first)
        ssm.log_dt.add_(0.1)
        ssm(u)
        assert len(calls) == 4
    ssm(u)
    ssm(u)
    assert len(calls) == 6


@torch.no_grad()
def test_precision_stays_float32() -> None:
    torch.manual_seed(0)
    layer = LegacyS4(4, 32, n_state=16).eval()
    u = torch.randn(2, 4, 32)
    convolved, expected = layer.ssm(u), layer(u)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer.ssm(u), convolved)
    before = {name: tensor.clone() for name, tensor in layer.ssm.state_dict().items()}
    layer.to(torch.bfloat16)
    assert layer.output_linear.weight.dtype == torch.bfloat16
    for name, tensor in layer.ssm.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    output = layer(u.bfloat16())
    assert output.dtype == torch.bfloat16
    assert (output - expected).abs().max() < 0.05 * expected.abs().max()


@torch.no_grad()
def test_layer_applies_gelu_and_a_linear_map() -> None:
    layer = LegacyS4(3, 16, n_state=8).eval()
    u = torch.randn(2, 3, 16)
    weight, bias = layer.output_linear.weight.squeeze(-1), layer.output_linear.bias
    expected = torch.einsum("oi,bil->bol", weight, F.gelu(layer.ssm(u))) + bias.unsqueeze(-1)
    torch.testing.assert_close(layer(u), expected)


def test_trainable_parameters_are_those_of_the_official_code() -> None:
    ssm = make(d_model=3, n_state=8)
    assert {name: tuple(p.shape) for name, p in ssm.named_parameters()} == {
        "C": (2, 3, 4, 2),
        "Q": (2, 3, 4, 2),
        "D": (3,),
    }
    assert all(tensor.dtype == torch.float32 for tensor in ssm.state_dict().values())


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="even length, got 15"):
        LegacyStateSpace(3, 15)
    with pytest.raises(ValueError, match="even and at least 2, got 7"):
        LegacyStateSpace(3, 16, n_state=7)
    with pytest.raises(ValueError, match=r"\(batch, 3, length\), got \(2, 4, 16\)"):
        make()(torch.zeros(2, 4, 16))
    with pytest.raises(ValueError, match="a length of at least one sample, got 0"):
        make()(torch.zeros(2, 3, 0))


@pytest.mark.parametrize("evaluate", [True, False])
def test_an_empty_batch_gives_an_empty_output(evaluate: bool) -> None:
    layer = LegacyS4(3, 16, n_state=8).train(not evaluate)
    with torch.set_grad_enabled(not evaluate):
        y = layer(torch.zeros(0, 3, 16))
    assert y.shape == (0, 3, 16)
    if not evaluate:
        y.sum().backward()


@pytest.mark.parametrize("stored_nodes", [False, True])
def test_construction_on_the_meta_device(stored_nodes: bool) -> None:
    original = LegacyS4(3, 16, n_state=8, stored_nodes=stored_nodes).eval()
    with torch.device("meta"):
        layer = LegacyS4(3, 16, n_state=8, stored_nodes=stored_nodes).eval()
    assert {tensor.device.type for tensor in layer.state_dict().values()} == {"meta"}
    layer.to_empty(device="cpu").load_state_dict(original.state_dict())
    u = torch.randn(2, 3, 16)
    assert torch.equal(layer(u), original(u))


def test_second_derivatives() -> None:
    layer = LegacyS4(2, 6, n_state=4).double()
    u, q = torch.randn(1, 2, 6, dtype=torch.float64), layer.ssm.Q.detach().clone()

    def run(u: Tensor, q: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"ssm.Q": q}, (u,), {"residual": u})

    assert torch.autograd.gradgradcheck(run, (u.requires_grad_(), q.requires_grad_()))
