"""Tests of every model: copies, meta device, empty inputs, gradient checkpointing, second derivatives."""

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.models import (
    AutoregressiveModel,
    Denoiser,
    SampleRNN,
    SashimiAutoregressive,
    SashimiDenoiser,
    WaveNetAutoregressive,
    WaveNetDenoiser,
)

EMBEDDING = {"embedding_sines": 8, "embedding_hidden": 6, "embedding_dim": 6, "num_classes": 3, "num_speakers": 2}
MEL = {"mel_channels": 5, "mel_upsample": (4, 4)}
SASHIMI = {"d_model": 4, "n_layers": 1, "n_state": 4, "pool": [2, 2]}
DIAGONAL = {"parameterization": "diag", "initialization": "lin", "discretization": "zoh"}
DENOISERS = {
    "sashimi": (SashimiDenoiser, {**SASHIMI, **EMBEDDING}),
    "sashimi-snet": (SashimiDenoiser, {**SASHIMI, **EMBEDDING, "unet": False, "norm": "layer"}),
    "sashimi-vocoder": (SashimiDenoiser, {**SASHIMI, **EMBEDDING, **DIAGONAL, **MEL}),
    "wavenet": (WaveNetDenoiser, {"residual_channels": 4, "skip_channels": 5, "n_layers": 3, **EMBEDDING}),
    "wavenet-vocoder": (
        WaveNetDenoiser,
        {"residual_channels": 4, "skip_channels": 5, "n_layers": 2, **EMBEDDING, **MEL, "step_on_residual": True},
    ),
}
WAVENET = {"residual_channels": 6, "dilation_channels": 5, "skip_channels": 7, "end_channels": 9, "n_layers": 3}
AUTOREGRESSIVE = {
    "sashimi-ar": (SashimiAutoregressive, {**SASHIMI, "num_tokens": 16}),
    "sashimi-ar-unet": (SashimiAutoregressive, {**SASHIMI, **DIAGONAL, "num_tokens": 16, "unet": True}),
    "wavenet-ar": (WaveNetAutoregressive, {**WAVENET, "n_cycles": 2, "num_tokens": 16}),
    "samplernn": (SampleRNN, {"dim": 6, "embedding_dim": 5, "frame_sizes": (4, 2), "num_tokens": 16}),
}
EVERY = {**DENOISERS, **AUTOREGRESSIVE}
Model = Denoiser | AutoregressiveModel


def make(name: str) -> Model:
    """Return a small model with random values in all parameters."""
    torch.manual_seed(0)
    model_class, options = EVERY[name]
    model = model_class(**options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def run(model: Model, batch: int = 2, length: int = 64) -> Tensor:
    """Return the output for a fixed input."""
    generator = torch.Generator().manual_seed(1)
    if isinstance(model, AutoregressiveModel):
        return model(torch.randint(16, (batch, length), generator=generator))
    labels = torch.tensor([1, 0])[:batch]
    mel = torch.randn(batch, 5, -(-length // 16), generator=generator) if model.config.mel_channels else None
    sample = torch.randn(batch, 1, length, generator=generator)
    return model(sample.to(model.dtype), 5.5, labels, mel, labels).sample


def gradients(model: Model) -> dict[str, Tensor]:
    model.zero_grad()
    run(model).square().mean().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def saved_and_loaded(model: Model) -> Model:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), saved_and_loaded],
    ids=["deepcopy", "pickle", "torch.save"],
)
@pytest.mark.parametrize("name", EVERY)
def test_copies_are_equal_and_independent(name: str, copied: Callable[[Model], Model]) -> None:
    model = make(name)
    gradients(model)
    with torch.no_grad():
        expected = run(model)
    other = copied(model)
    assert list(other.state_dict()) == list(model.state_dict())
    with torch.no_grad():
        assert torch.equal(run(other), expected)
        for parameter in other.parameters():
            parameter.zero_()
        assert torch.equal(run(model), expected)


@pytest.mark.parametrize("name", EVERY)
def test_models_on_the_meta_device_have_the_same_parameters(name: str) -> None:
    model_class, options = EVERY[name]
    if "parameterization" not in options and "pool" in options:
        options = {**options, **DIAGONAL}
    expected = model_class(**options).state_dict()
    with torch.device("meta"):
        made = model_class(**options).state_dict()
    assert {key: value.shape for key, value in made.items()} == {key: value.shape for key, value in expected.items()}
    assert all(value.is_meta for value in made.values())


@pytest.mark.parametrize("name", EVERY)
def test_an_empty_batch_gives_an_empty_output(name: str) -> None:
    model = make(name)
    expected = run(model)
    assert run(model, batch=0).shape == (0, *expected.shape[1:])
    if isinstance(model, AutoregressiveModel):
        with torch.no_grad():
            logits, state = model.prefill(torch.zeros(0, 21, dtype=torch.int64))
            assert logits.shape == (0, 16, 21)
            logits, state = model.step(torch.zeros(0, dtype=torch.int64), state)
            assert logits.shape == (0, 16)
            logits, _ = model.prefill(torch.zeros(0, 5, dtype=torch.int64), state)
            assert logits.shape == (0, 16, 5)


@pytest.mark.parametrize("name", EVERY)
def test_empty_waveforms_are_refused(name: str) -> None:
    model = make(name)
    with pytest.raises(UserError, match="the waveforms are empty: expected at least one sample"):
        run(model, length=0)
    if isinstance(model, AutoregressiveModel):
        nothing = torch.zeros(2, 0, dtype=torch.int64)
        for state in (None, model.initial_state(2)):
            with pytest.raises(UserError, match="the waveforms are empty"):
                model.prefill(nothing, state)
        with pytest.raises(UserError, match="the waveforms are empty"):
            model.score(nothing)


@pytest.mark.parametrize("name", DENOISERS)
def test_waveforms_of_another_shape_are_refused(name: str) -> None:
    model = make(name)
    for shape in ((2, 2, 64), (2, 64)):
        with pytest.raises(UserError, match=r"shape \(batch, 1, length\), got a tensor of shape"):
            model(torch.zeros(shape), 5)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", [name for name in EVERY if name not in ("wavenet-ar", "samplernn")])
def test_gradient_checkpointing_changes_no_gradient(name: str, autocast: bool) -> None:
    model = make(name).train()
    calls: list[nn.Module] = []

    def count(module: nn.Module, *args: object) -> None:
        if torch.is_grad_enabled():
            calls.append(module)

    blocks = model.blocks if isinstance(model, WaveNetDenoiser) else [*model.backbone.up[0], *model.backbone.center]
    for block in blocks:
        block.register_forward_pre_hook(count)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        expected = gradients(model)
    calls_of_one_pass = len(calls)
    model.enable_gradient_checkpointing()
    assert model.is_gradient_checkpointing
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        actual = gradients(model)
    assert len(calls) == 3 * calls_of_one_pass  # the forward pass, and again in the backward pass
    assert actual.keys() == expected.keys()
    for key, gradient in actual.items():
        torch.testing.assert_close(gradient, expected[key], rtol=1e-5, atol=1e-7)
    with torch.no_grad():
        assert torch.isfinite(run(model)).all()
    model.disable_gradient_checkpointing()
    assert not model.is_gradient_checkpointing


@pytest.mark.parametrize("name", DENOISERS)
def test_second_derivatives_are_correct_or_refused(name: str) -> None:
    """The gradient of a gradient penalty agrees with finite differences, or the model raises an error."""
    model = make(name).double()
    sample = torch.randn(2, 1, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    mel = torch.zeros(2, 5, 1, dtype=torch.float64) if model.config.mel_channels else None

    def penalty() -> Tensor:
        prediction = model(sample, 5.0, mel=mel).sample
        (gradient,) = torch.autograd.grad(prediction.square().sum(), sample, create_graph=True)
        return gradient.square().sum()

    try:
        penalty().backward()
    except (RuntimeError, NotImplementedError) as error:
        if "second derivative" not in str(error):
            raise
        return
    for parameter in list(model.parameters())[:: max(1, len(list(model.parameters())) // 12)]:
        if parameter.grad is None:
            continue
        values, expected = parameter.data.view(-1), parameter.grad.view(-1)[0]
        original = values[0].item()
        sides = []
        for difference in (1e-6, -1e-6):
            values[0] = original + difference
            sides.append(penalty().item())
        values[0] = original
        assert (sides[0] - sides[1]) / 2e-6 == pytest.approx(expected.item(), rel=1e-3, abs=1e-5)
