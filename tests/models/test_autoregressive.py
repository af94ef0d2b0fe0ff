"""Tests of SashimiAutoregressive: forward, steps and prefill agree; gradients, saving, stability."""

import pytest
import torch

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.models import AutoregressiveModel, SashimiAutoregressive
from sashimi_diffusion.models.autoregressive_base import detached
from sashimi_diffusion.ssm import S4Layer, StateSpace

SMALL = {"num_tokens": 32, "d_model": 8, "n_layers": 2, "n_state": 8}
S4D = {"parameterization": "diag", "initialization": "lin", "discretization": "zoh"}
CONFIGURATIONS = {
    "snet": {},
    "unet": {"unet": True},
    "unet-layer-norm-s4d": {"unet": True, "norm": "layer", **S4D},
    "tied": {"n_ssm": 1},
    "unconstrained": {"stable": False},
    "no-feed-forward": {"ff": 0},
    "uneven-stages": {"unet": True, "n_layers": [0, 2, 1]},
    "other-pools": {"unet": True, "pool": [2, 3], "n_layers": 1},
    "one-rate": {"pool": [], "n_layers": 2},
}


def small_model(seed: int = 0, **options) -> SashimiAutoregressive:
    torch.manual_seed(seed)
    model = SashimiAutoregressive(**{**SMALL, **options}).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # values such as 0 and 1 could hide an error
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def in_steps(model: AutoregressiveModel, tokens: torch.Tensor, state=None) -> tuple[torch.Tensor, object]:
    state = model.initial_state(tokens.shape[0]) if state is None else state
    outputs = []
    for column in tokens.unbind(1):
        logits, state = model.step(column, state)
        outputs.append(logits)
    return torch.stack(outputs, dim=-1), state


@torch.no_grad()
@pytest.mark.parametrize("options", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_forward_steps_and_prefill_agree(options: dict) -> None:
    model = small_model(**options).double()
    tokens = torch.randint(32, (2, 96))
    expected = model(tokens)  # (2, 32, 96)
    stepped, stepped_state = in_steps(model, tokens)
    torch.testing.assert_close(stepped, expected, rtol=0, atol=1e-10)
    parts, state = [], None
    for part in tokens.split([1, 36, 16, 2, 41], dim=1):  # prefixes that end inside of a frame
        logits, state = model.prefill(part, state)
        parts.append(logits)
    torch.testing.assert_close(torch.cat(parts, dim=-1), expected, rtol=0, atol=1e-10)
    for actual, stepped_layer in zip(state.layers, stepped_state.layers, strict=True):
        torch.testing.assert_close(actual, stepped_layer, rtol=0, atol=1e-10)


@torch.no_grad()
@pytest.mark.parametrize("length", [1, 7, 37, 101])
def test_steps_continue_after_a_prefix_of_any_length(length: int) -> None:
    model = small_model(unet=True).double()
    tokens = torch.randint(32, (1, 128))
    before, state = model.prefill(tokens[:, :length])
    after, _ = in_steps(model, tokens[:, length:], state)
    torch.testing.assert_close(torch.cat([before, after], dim=-1), model(tokens), rtol=0, atol=1e-10)


@torch.no_grad()
def test_step_and_prefill_do_not_change_their_state() -> None:
    model = small_model(unet=True)
    _, state = model.prefill(torch.randint(32, (1, 19)))
    copies = [tensor.clone() for part in state[1:] for tensor in part]
    for tokens in torch.randint(32, (20, 1)):
        model.step(tokens, state)
    model.prefill(torch.randint(32, (1, 40)), state)
    for tensor, copy in zip([tensor for part in state[1:] for tensor in part], copies, strict=True):
        assert torch.equal(tensor, copy)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"unet": True}, {"unet": True, **S4D}], ids=["snet", "unet", "unet-s4d"])
def test_float32_errors_do_not_grow_in_a_second_of_audio(options: dict, record_property) -> None:
    model = small_model(**{**options, "n_state": 64})
    tokens = torch.randint(32, (1, 16000))
    stepped, _ = in_steps(model, tokens)
    errors = (stepped - model(tokens)).abs().amax(dim=(0, 1)) / stepped.abs().max()  # (16000,)
    first, last = errors[:2000].max().item(), errors[-2000:].max().item()
    record_property("error", f"{first:.1e} in the first 2,000 steps, {last:.1e} in the last")
    assert last < 1e-4
    assert last < 20 * first


def test_truncated_back_propagation_carries_the_state_without_the_graph() -> None:
    model = small_model(unet=True).double().train()
    tokens = torch.randint(32, (1, 64))
    whole = model(tokens)
    _, state = model.prefill(tokens[:, :32])
    assert state.layers[0].requires_grad
    state = detached(state)
    assert not any(tensor.requires_grad for part in state[1:] for tensor in part)
    second, _ = model.prefill(tokens[:, 32:], state)
    torch.testing.assert_close(second, whole[..., 32:], rtol=0, atol=1e-10)
    second.square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_gradients_through_a_carried_state_match_one_pass() -> None:
    model = small_model(unet=True).double().train()
    tokens = torch.randint(32, (1, 64))
    weights = torch.randn(1, 32, 64, dtype=torch.float64)
    (model(tokens) * weights).sum().backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    first, state = model.prefill(tokens[:, :32])
    second, _ = model.prefill(tokens[:, 32:], state)
    (torch.cat([first, second], dim=-1) * weights).sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-7, atol=1e-9)


@torch.no_grad()
def test_scores_are_probabilities_of_whole_sequences() -> None:
    model = small_model(num_tokens=4).double()
    sequences = torch.cartesian_prod(*[torch.arange(4)] * 3)  # all (64, 3)
    scores = model.score(sequences)  # (64, 3)
    assert scores.dtype == torch.float32
    assert scores.sum(dim=1).exp().sum() == pytest.approx(1, abs=1e-5)


def test_published_sizes() -> None:
    def parameters(**options) -> int:
        return sum(parameter.numel() for parameter in SashimiAutoregressive(**options).parameters())

    assert parameters(n_ssm=1) == 4_751_072
    assert parameters(unet=True) == 6_820_512


def test_save_and_load(tmp_path) -> None:
    model = small_model(unet=True, quantization="linear")
    model.save_pretrained(tmp_path)
    loaded = SashimiAutoregressive.from_pretrained(tmp_path).eval()
    assert loaded.config.quantization == "linear"
    tokens = torch.randint(32, (1, 16))
    assert torch.equal(loaded(tokens), model(tokens))


def test_half_precision_keeps_the_state_spaces_in_float32() -> None:
    model = small_model().bfloat16()
    assert model.embedding.weight.dtype == torch.bfloat16
    assert all(layer.ssm.C.dtype == torch.float32 for layer in model.backbone.s4_layers())
    with torch.no_grad():
        logits, _ = in_steps(model, torch.randint(32, (1, 20)))
    assert logits.isfinite().all()


def test_a_length_that_does_not_fit_is_named() -> None:
    with pytest.raises(UserError, match="multiple of 16, got 17"):
        small_model()(torch.zeros(1, 17, dtype=torch.int64))


STEPS = 100_000


def perturbed_state_space(stable: bool, seed: int, scale: float) -> StateSpace:
    torch.manual_seed(seed)
    ssm = StateSpace(4, n_state=8, stable=stable, dt_min=1e-2).eval()
    with torch.no_grad():
        for parameter in ssm.parameters():
            parameter += scale * torch.randn_like(parameter)
    return ssm


@torch.no_grad()
def growth(ssm: StateSpace) -> float:
    """Return the growth of the largest state from the first 10,000 to the last 1,000 of 100,000 steps on noise."""
    state = ssm.initial_state(1)
    largest = []
    for signal in torch.randn(STEPS // 1000, 1000, 1, 4).unbind(0):
        _, final = ssm.prefill(signal.permute(1, 2, 0), state)
        state = final
        largest.append(state.abs().max().item())
        if not state.abs().max() < 1e12:
            return float("inf")
    return largest[-1] / max(largest[:10])


@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0])
@pytest.mark.parametrize("seed", range(3))
def test_stable_by_construction(seed: int, scale: float) -> None:
    """With A = Λ - p p* the state does not grow for any parameters (SaShiMi, section 4.2)."""
    assert growth(perturbed_state_space(True, seed, scale)) < 10


def test_unconstrained_parameters_can_grow() -> None:
    """With a separate q and unconstrained Re Λ the same perturbations make the state grow."""
    grown = [growth(perturbed_state_space(False, seed, 1.0)) for seed in range(3)]
    assert max(grown) == float("inf")


@torch.no_grad()
def test_steps_are_as_stable_as_the_convolution() -> None:
    ssm = perturbed_state_space(True, 0, 1.0)
    state = ssm.initial_state(1)
    signal = torch.randn(2000, 1, 4)
    for column in signal:
        _, state = ssm.step(column, state)
    _, expected = ssm.prefill(signal.permute(1, 2, 0))
    torch.testing.assert_close(state, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())


def test_the_unconstrained_layer_is_initialized_like_the_constrained_one() -> None:
    layers = []
    for stable in (True, False):
        torch.manual_seed(0)
        layers.append(S4Layer(4, n_state=8, stable=stable).eval())
    u = torch.randn(1, 4, 50)
    torch.testing.assert_close(layers[1](u), layers[0](u), rtol=1e-4, atol=1e-5)
