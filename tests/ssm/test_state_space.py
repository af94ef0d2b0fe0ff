"""Tests of StateSpace and S4Layer: forward, steps and prefill; cached kernels; precision."""

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from sashimi_diffusion.ssm import S4Layer, StateSpace, convolution, frozen, state_space, state_space_parameters

VARIANTS = {
    "nplr": {"parameterization": "nplr"},
    "nplr tied": {"parameterization": "nplr", "n_ssm": 1},
    "legs zoh": {"parameterization": "diag", "initialization": "legs", "discretization": "zoh"},
    "lin bilinear": {"parameterization": "diag", "initialization": "lin", "discretization": "bilinear"},
    "inv zoh tied": {"parameterization": "diag", "initialization": "inv", "discretization": "zoh", "n_ssm": 2},
    "two outputs": {"parameterization": "nplr", "outputs_per_feature": 2},
}


def make(variant: str, dtype: torch.dtype = torch.float64, seed: int = 0) -> S4Layer:
    torch.manual_seed(seed)
    return S4Layer(4, n_state=8, **VARIANTS[variant]).to(dtype).eval()


def run_steps(layer: S4Layer, u: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    outputs = []
    for sample in u.unbind(-1):
        y, state = layer.step(sample, state)
        outputs.append(y)
    return torch.stack(outputs, dim=-1), state


@pytest.mark.parametrize("variant", VARIANTS)
@settings(max_examples=8)
@given(length=st.integers(1, 90), prefix=st.integers(0, 90), seed=st.integers(0, 1000))
def test_forward_step_and_prefill_agree(variant: str, length: int, prefix: int, seed: int) -> None:
    layer = make(variant, seed=seed)
    u = torch.randn(2, 4, length, dtype=torch.float64)
    with torch.no_grad():
        whole = layer(u)
        stepped, final = run_steps(layer, u, layer.initial_state(2))
        torch.testing.assert_close(stepped, whole, rtol=0, atol=1e-9)
        prefix = min(prefix, length - 1)
        if prefix:
            first, state = layer.prefill(u[..., :prefix])
            rest, prefilled = layer.prefill(u[..., prefix:], state)
            torch.testing.assert_close(torch.cat([first, rest], dim=-1), whole, rtol=0, atol=1e-9)
            torch.testing.assert_close(prefilled, final, rtol=0, atol=1e-8)
            torch.testing.assert_close(layer(u[..., prefix:], state), rest, rtol=0, atol=1e-12)


@pytest.mark.parametrize("variant", VARIANTS)
def test_float32_agrees_with_float64(variant: str) -> None:
    exact, layer = make(variant), make(variant, torch.float32)
    u = torch.randn(2, 4, 2000)
    with torch.no_grad():
        expected = exact.double()(u.double())
        assert (layer(u) - expected).abs().max() < 1e-5 * expected.abs().max()
        stepped, _ = run_steps(layer, u[..., :300], layer.initial_state(2))
        assert (stepped - expected[..., :300]).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("shift", [0, 1])
def test_bidirectional_kernels_are_applied_in_both_directions(shift: int) -> None:
    """The response to an impulse is the forward kernel after it, the reverse kernel before it, and D at it."""
    torch.manual_seed(0)
    ssm = StateSpace(3, n_state=8, bidirectional=True, reverse_shift=shift).double().eval()
    u = torch.zeros(1, 3, 21, dtype=torch.float64)
    u[..., 10] = 1
    with torch.no_grad():
        y, (forward, reverse) = ssm(u)[0], ssm.kernel(21)
    expected = torch.zeros_like(y)
    expected[:, 10:] += forward[:, :11]
    expected[:, : 11 - shift] += reverse[:, : 11 - shift].flip(-1)
    expected[:, 10] += ssm.D[0].detach()
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)


def test_kernels_are_cut_at_max_length() -> None:
    torch.manual_seed(0)
    ssm = StateSpace(3, n_state=8, bidirectional=True, max_length=10)
    kernel = ssm.kernel(16)
    assert torch.equal(kernel[..., :10], ssm.kernel(10))
    assert torch.equal(kernel[..., 10:], torch.zeros(2, 3, 6))
    assert ssm.kernel(7).shape == (2, 3, 7)


def test_bidirectional_has_no_recurrence() -> None:
    ssm = StateSpace(3, n_state=8, bidirectional=True)
    with pytest.raises(RuntimeError, match="looks ahead"):
        ssm.prefill(torch.zeros(1, 3, 5))
    with pytest.raises(RuntimeError, match="looks ahead"):
        ssm.step(torch.zeros(1, 3), ssm.initial_state(1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"parameterization": "dplr"}, "expected 'nplr' or 'diag'"),
        ({"discretization": "zoh"}, "'bilinear' only"),
        ({"parameterization": "diag", "discretization": "euler"}, "expected 'zoh' or 'bilinear'"),
        ({"initialization": "lin"}, "does not exist"),
        ({"n_state": 7}, "even"),
        ({"n_ssm": 3}, "divide"),
        ({"reverse_shift": 2}, "0 or 1"),
        ({"max_length": 8}, "differ from the recurrence"),
        ({"bandlimit": 1.0}, "needs parameterization 'diag'"),
        ({"parameterization": "diag", "discretization": "dss"}, "normalizes over the whole kernel"),
        ({"initialization": "legt"}, "'legt' does not exist for 'nplr' \\(its low-rank term has rank 2"),
        ({"initialization": "fourier"}, "only HiPPO-LegS is implemented"),
        ({"parameterization": "diag", "initialization": "diag-real"}, "its eigenvalues are real"),
        ({"parameterization": "diag", "initialization": "diag-lin"}, "is 'lin' with parameterization 'diag'"),
    ],
)
def test_invalid_arguments_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StateSpace(4, **arguments)


def test_wrong_input_shape_is_named() -> None:
    with pytest.raises(ValueError, match=r"\(batch, 4, length\), got \(2, 5, 7\)"):
        StateSpace(4)(torch.zeros(2, 5, 7))


@pytest.mark.parametrize("variant", VARIANTS)
def test_empty_signals_and_empty_batches(variant: str) -> None:
    layer = make(variant, torch.float32)
    ssm, state = layer.ssm, layer.initial_state(2)
    for module in (layer, ssm):
        for call in (module, module.prefill, lambda u, module=module: module(u, state)):
            with pytest.raises(ValueError, match="a length of at least one sample, got 0"):
                call(torch.zeros(2, 4, 0))
    with pytest.raises(ValueError, match="a length of at least one sample, got 0"):
        ssm.kernel(0)
    outputs, none = ssm.outputs_per_feature, torch.zeros(0, 4, 5)
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            assert ssm(none).shape == ssm(none, ssm.initial_state(0)).shape == (0, 4 * outputs, 5)
            assert layer(none).shape == layer(none, residual=none).shape == (0, 4, 5)
            y, final = layer.prefill(none)
            assert (y.shape, final.shape) == ((0, 4, 5), (0, 4, 4))
            y, final = layer.step(none[..., 0], final)
            assert (y.shape, final.shape) == ((0, 4), (0, 4, 4))
    layer(none).sum().backward()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_construction_on_the_meta_device(variant: str, bidirectional: bool) -> None:
    original = S4Layer(8, bidirectional=bidirectional, **VARIANTS[variant])
    with torch.device("meta"):
        layer = S4Layer(8, bidirectional=bidirectional, **VARIANTS[variant])
    assert {tensor.device.type for tensor in layer.state_dict().values()} == {"meta"}
    layer.to_empty(device="cpu").load_state_dict(original.state_dict())
    u = torch.randn(2, 8, 20)
    assert torch.equal(layer(u), original(u))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("rate", [0.5, 3.0])
def test_a_rate_is_a_factor_of_the_step_sizes(variant: str, rate: float) -> None:
    layer, faster = make(variant), make(variant)
    faster.ssm.log_dt.data += math.log(rate)
    u, state = torch.randn(2, 4, 30, dtype=torch.float64), layer.initial_state(2) + 1
    for mode in (True, False):
        with torch.set_grad_enabled(mode):
            torch.testing.assert_close(layer(u, rate=rate), faster(u))
            torch.testing.assert_close(layer(u, state, rate), faster(u, state))
            torch.testing.assert_close(layer.prefill(u, state, rate), faster.prefill(u, state))
            torch.testing.assert_close(layer.step(u[..., 0], state, rate), faster.step(u[..., 0], state))
            with frozen(layer):
                torch.testing.assert_close(layer(u, rate=rate), faster(u))
                torch.testing.assert_close(layer(u), make(variant)(u))  # the kept kernel is of rate 1 again


def test_a_rate_changes_the_length_of_truncated_kernels() -> None:
    ssm = StateSpace(3, n_state=8, bidirectional=True, max_length=10)
    assert [int((ssm.kernel(40, rate)[0, 0] != 0).sum()) for rate in (0.5, 1.0, 2.0)] == [20, 10, 5]
    with pytest.raises(ValueError, match="rate must be positive"):
        ssm(torch.zeros(1, 3, 5), rate=0.0)


def test_a_band_limit_drops_states_in_every_form() -> None:
    """The frequencies of initialization "lin" are n dt / 2 cycles per sample."""
    options = {"parameterization": "diag", "initialization": "lin", "discretization": "zoh", "dt_min": 0.1}
    layer = S4Layer(4, n_state=8, dt_max=0.1, bandlimit=0.25, **options).double().eval()
    limited = S4Layer(4, n_state=8, dt_max=0.1, **options).double().eval()
    limited.load_state_dict(layer.state_dict())
    limited.ssm.C.data[:, :, 3:] = 0  # 3 · 0.1 / 2 >= 0.25 / 2
    u = torch.randn(2, 4, 30, dtype=torch.float64)
    with torch.no_grad():
        whole = limited(u)
        torch.testing.assert_close(layer(u), whole)
        torch.testing.assert_close(run_steps(layer, u, layer.initial_state(2))[0], whole)
        # The limit refers to rate 1, as in the official code.
        torch.testing.assert_close(layer(u, rate=0.5), limited(u, rate=0.5))


def test_dropout_acts_on_the_activations_in_training_only() -> None:
    torch.manual_seed(0)
    layer = S4Layer(4, n_state=8, dropout=0.5)
    plain = S4Layer(4, n_state=8)
    plain.load_state_dict(layer.state_dict())
    u = torch.randn(1, 4, 1000)
    assert torch.equal(layer.eval()(u), plain.eval()(u))
    seen = []
    layer.output_linear.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    layer.train()(u)
    active = seen[0] != 0
    assert 0.4 < active.float().mean() < 0.6
    torch.testing.assert_close(seen[0][active], 2 * F.gelu(plain.ssm(u))[active])


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_second_derivatives(variant: str, backend: str) -> None:
    layer = S4Layer(2, n_state=4, backend=backend, **VARIANTS[variant]).double()
    u, c = torch.randn(1, 2, 6, dtype=torch.float64), layer.ssm.C.detach().clone()

    def run(u: Tensor, c: Tensor) -> Tensor:
        y, state = torch.func.functional_call(_Prefill(layer), {"layer.ssm.C": c}, (u,))
        return torch.cat([y.flatten(), torch.view_as_real(state).flatten()])

    def forward(u: Tensor, c: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"ssm.C": c}, (u,), {"residual": u})

    for function in (run, forward):
        assert torch.autograd.gradgradcheck(function, (u.requires_grad_(), c.requires_grad_()))


class _Prefill(nn.Module):
    def __init__(self, layer: S4Layer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, u: Tensor) -> tuple[Tensor, Tensor]:
        return self.layer.prefill(u)


def test_eigenvalues_stay_in_the_left_half_plane() -> None:
    """Λ - p p* is Hurwitz for all parameter values (SaShiMi, proposition 4.3)."""
    torch.manual_seed(0)
    ssm = StateSpace(16, n_state=16)
    with torch.no_grad():
        for parameter in ssm.parameters():
            parameter.add_(torch.randn_like(parameter))
    system = ssm.continuous_system()
    matrix = torch.diag_embed(system.a) - system.p.unsqueeze(-1) * system.p.conj().unsqueeze(-2)
    assert (torch.linalg.eigvals(matrix).real < 0).all()


def test_extreme_step_sizes_leave_the_kernel_finite() -> None:
    ssm = StateSpace(4, n_state=8)
    with torch.no_grad():
        ssm.log_dt.copy_(torch.tensor([-1e4, -50.0, 50.0, 1e4]))
    assert torch.isfinite(ssm.kernel(100)).all()


class TestFrozen:
    """Tests of the convolution operator that a frozen layer keeps until something changes."""

    @pytest.fixture
    def layer(self, monkeypatch: pytest.MonkeyPatch) -> S4Layer:
        self.computed = 0

        def counting(*arguments: Any) -> Any:
            self.computed += 1
            return convolution.convolution_operators(*arguments)

        monkeypatch.setattr(state_space, "convolution_operators", counting)
        return make("nplr", torch.float32)

    def run(self, layer: S4Layer, length: int = 50) -> Tensor:
        """Return the output for a fixed input, checked against a new copy of the layer."""
        u = torch.linspace(-1, 1, 4 * length).view(1, 4, length).to(layer.ssm.D.dtype)
        with torch.no_grad():
            y = layer(u)
            computed = self.computed
            fresh = make("nplr", layer.ssm.D.dtype)
            fresh.load_state_dict(layer.state_dict())
            torch.testing.assert_close(y, fresh(u))
            self.computed = computed
        return y

    def test_computed_once(self, layer: S4Layer) -> None:
        with frozen(layer):
            for _ in range(3):
                self.run(layer)
            with frozen(layer):
                self.run(layer)
            self.run(layer)
            assert self.computed == 1
        for _ in range(2):
            self.run(layer)
        assert self.computed == 3
        with frozen(layer):
            self.run(layer)
        assert self.computed == 4

    def test_an_error_ends_the_context(self, layer: S4Layer) -> None:
        with pytest.raises(RuntimeError), frozen(layer):
            raise RuntimeError
        for _ in range(2):
            self.run(layer)
        assert self.computed == 2

    def test_copies_are_not_frozen(self, layer: S4Layer) -> None:
        with frozen(layer):
            self.run(layer)
            copied = copy.deepcopy(layer)
            for _ in range(2):
                self.run(copied)
        assert self.computed == 3

    def test_length(self, layer: S4Layer) -> None:
        with frozen(layer):
            self.run(layer)
            self.run(layer, length=60)
        assert self.computed == 2

    def test_load_state_dict(self, layer: S4Layer) -> None:
        for assign in (False, True):
            with frozen(layer):
                before = self.run(layer)
                layer.load_state_dict(make("nplr", torch.float32, seed=2 + assign).state_dict(), assign=assign)
                assert not torch.equal(self.run(layer), before)

    def test_optimizer_step(self, layer: S4Layer) -> None:
        optimizer = torch.optim.SGD(layer.ssm.parameters(), lr=0.1)
        layer(torch.ones(1, 4, 50)).sum().backward()
        with frozen(layer):
            before = self.run(layer)
            optimizer.step()
            assert not torch.equal(self.run(layer), before)

    @pytest.mark.parametrize("name", ["log_dt", "log_neg_real", "imag", "B", "P", "C", "D"])
    def test_in_place_write(self, layer: S4Layer, name: str) -> None:
        with torch.no_grad(), frozen(layer):
            before = self.run(layer)
            getattr(layer.ssm, name).mul_(1.1)
            assert not torch.equal(self.run(layer), before)

    @pytest.mark.parametrize("name", ["log_dt", "log_neg_real", "imag", "B", "P", "C", "D"])
    def test_a_moving_average_that_writes_through_data(self, layer: S4Layer, name: str) -> None:
        """Such a write between two contexts, as some moving averages do, changes the output of the second one."""
        with frozen(layer):
            before = self.run(layer)
        parameter = getattr(layer.ssm, name)
        parameter.data.lerp_(2 * parameter.data, 0.1)
        with frozen(layer):
            assert not torch.equal(self.run(layer), before)

    def test_dtype(self, layer: S4Layer) -> None:
        with frozen(layer):
            self.run(layer)
            layer.double()
            assert self.run(layer).dtype == torch.float64
        assert self.computed == 2

    def test_device(self, layer: S4Layer) -> None:
        with torch.no_grad(), frozen(layer):
            self.run(layer)
            layer.to("meta")
            assert layer(torch.zeros(1, 4, 50, device="meta")).device.type == "meta"

    def test_training_mode_keeps_nothing(self, layer: S4Layer) -> None:
        layer.train()
        with frozen(layer):
            for _ in range(3):
                self.run(layer)
        assert self.computed == 3

    def test_a_pass_with_gradients_keeps_nothing(self, layer: S4Layer) -> None:
        with frozen(layer):
            self.run(layer)
            layer(torch.ones(1, 4, 50)).sum().backward()
            assert layer.ssm.C.grad is not None
            self.run(layer)
        assert self.computed == 2

    def test_steps_use_changed_parameters(self, layer: S4Layer) -> None:
        state = torch.ones(1, 4, 4, dtype=torch.complex64)
        with torch.no_grad(), frozen(layer):
            before, _ = layer.step(torch.ones(1, 4), state)
            layer.ssm.C.mul_(2)
            after, _ = layer.step(torch.ones(1, 4), state)
        assert not torch.equal(before, after)


@pytest.mark.parametrize("cast", [lambda m: m.to(torch.bfloat16), lambda m: m.half(), lambda m: m.bfloat16()])
def test_state_space_parameters_stay_float32(cast) -> None:
    model = nn.Sequential(S4Layer(4, n_state=8), nn.Conv1d(4, 4, 1))
    before = {name: parameter.clone() for name, parameter in model[0].ssm.named_parameters()}
    cast(model)
    assert model[1].weight.dtype in (torch.bfloat16, torch.float16)
    for name, parameter in model[0].ssm.named_parameters():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, before[name])


def test_half_precision_input_is_convolved_in_float32() -> None:
    layer = make("nplr", torch.float32)
    u = torch.randn(2, 4, 100)
    with torch.no_grad():
        expected = layer.ssm(u.bfloat16().float())
        y = layer.ssm(u.bfloat16())
        assert y.dtype == torch.bfloat16
        assert torch.equal(y, expected.bfloat16())
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(layer.ssm(u), layer.ssm(u.float()))
            assert layer.ssm(u).dtype == torch.float32


@pytest.mark.parametrize(("parameterization", "count"), [("nplr", 5), ("diag", 4)])
def test_optimizer_group(parameterization: str, count: int) -> None:
    """The group has dt, A, B and P of every state space in a model, but not C and D."""
    layers = nn.Sequential(*(S4Layer(4, parameterization=parameterization) for _ in range(3)))
    group = {id(parameter) for parameter in state_space_parameters(layers)}
    assert len(group) == 3 * count
    assert not group & {id(p) for layer in layers for p in (layer.ssm.C, layer.ssm.D, layer.output_linear.weight)}
