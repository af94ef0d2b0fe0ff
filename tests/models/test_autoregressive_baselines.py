"""Tests of the autoregressive WaveNet and SampleRNN: forward, steps and prefill, causality, sizes."""

import pytest
import torch

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.generation import generate
from sashimi_diffusion.models import AutoregressiveModel, SampleRNN, WaveNetAutoregressive
from sashimi_diffusion.models.autoregressive_base import detached

WAVENET = {"residual_channels": 6, "dilation_channels": 5, "skip_channels": 7, "end_channels": 9, "n_layers": 3}
MODELS = {
    "wavenet": (WaveNetAutoregressive, {**WAVENET, "n_cycles": 2}),
    "samplernn": (SampleRNN, {"dim": 6, "embedding_dim": 5}),
    "samplernn-two-tiers-deep": (SampleRNN, {"dim": 6, "embedding_dim": 5, "frame_sizes": [4, 3], "n_rnn": 2}),
    "samplernn-one-tier": (SampleRNN, {"dim": 6, "embedding_dim": 5, "frame_sizes": [3]}),
}


@pytest.fixture(params=MODELS.values(), ids=MODELS)
def model(request: pytest.FixtureRequest) -> AutoregressiveModel:
    """Return a small network in float64 with random values in all parameters."""
    torch.manual_seed(0)
    model_class, options = request.param
    model = model_class(num_tokens=16, **options).eval().double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


@torch.no_grad()
def test_forward_steps_and_prefill_agree(model: AutoregressiveModel) -> None:
    tokens = torch.randint(16, (2, 96))
    expected = model(tokens)
    state, stepped = model.initial_state(2), []
    for column in tokens.unbind(1):
        logits, state = model.step(column, state)
        stepped.append(logits)
    torch.testing.assert_close(torch.stack(stepped, dim=-1), expected, rtol=0, atol=1e-12)
    parts, state = [], None
    for part in tokens.split([1, 36, 16, 2, 41], dim=1):
        logits, state = model.prefill(part, state)
        parts.append(logits)
    torch.testing.assert_close(torch.cat(parts, dim=-1), expected, rtol=0, atol=1e-12)


@torch.no_grad()
def test_outputs_do_not_depend_on_later_inputs(model: AutoregressiveModel) -> None:
    tokens = torch.randint(16, (1, 96))
    expected = model(tokens)
    for position in range(0, 96, 7):
        changed = tokens.clone()
        changed[0, position] = (changed[0, position] + 5) % 16
        different = (model(changed) - expected).abs().amax(dim=1)[0] > 1e-12
        assert not different[:position].any()
        assert different[position]


@torch.no_grad()
def test_step_does_not_change_its_state(model: AutoregressiveModel) -> None:
    _, state = model.prefill(torch.randint(16, (2, 7)))
    token = torch.tensor([3, 4])
    first, _ = model.step(token, state)
    again, _ = model.step(token, state)
    assert torch.equal(first, again)


def test_gradients_pass_through_a_state_unless_it_is_detached(model: AutoregressiveModel) -> None:
    early, late = torch.randint(16, (1, 24)), torch.randint(16, (1, 72))
    gradients = []
    for cut in (False, True):
        model.zero_grad()
        _, state = model.prefill(early)
        logits, _ = model.prefill(late, detached(state) if cut else state)
        logits.square().mean().backward()
        gradients.append(gradient(model))
    assert not torch.allclose(gradients[0], gradients[1])
    model.zero_grad()
    logits = model(torch.cat([early, late], dim=1))[..., 24:]
    logits.square().mean().backward()
    torch.testing.assert_close(gradients[0], gradient(model), rtol=1e-9, atol=1e-14)


def gradient(model: AutoregressiveModel) -> torch.Tensor:
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    return torch.cat([part.flatten() for part in parts])


@torch.no_grad()
def test_generation_continues_a_prefix(model: AutoregressiveModel) -> None:
    """Prefill and steps over the prefix give the same samples, with the scores of a pass over the whole clip."""
    prefix = torch.randint(16, (2, 21))
    made = generate(model, 50, 2, prefix, generator=torch.Generator().manual_seed(1), engine="eager")
    assert torch.equal(made.tokens[:, :21], prefix)
    torch.testing.assert_close(made.log_probabilities, model.score(made.tokens), rtol=1e-5, atol=1e-5)
    greedy = generate(model, 50, 2, prefix, temperature=0, engine="eager")
    for position in range(21, 50, 7):
        logits, _ = model.prefill(model.inputs(greedy.tokens)[:, : position + 1])
        assert torch.equal(logits[..., -1].argmax(dim=1), greedy.tokens[:, position])


def test_published_sizes() -> None:
    """The networks have 4.2M and 35.0M parameters (arXiv 2202.09729, table 4)."""
    with torch.device("meta"):
        wavenet, sample_rnn = WaveNetAutoregressive(), SampleRNN()
    assert sum(parameter.numel() for parameter in wavenet.parameters()) == 4_161_792
    assert sum(parameter.numel() for parameter in sample_rnn.parameters()) == 35_026_176
    assert wavenet.receptive_field == 4 * 1023 + 1


def test_invalid_sizes_are_refused() -> None:
    with pytest.raises(UserError, match="n_cycles is 0: expected a whole number from 1"):
        WaveNetAutoregressive(n_cycles=0)
    with pytest.raises(UserError, match=r"frame_sizes is \[\]: expected at least one number"):
        SampleRNN(frame_sizes=[])
    with pytest.raises(UserError, match="multiple of 32, got 40 samples"):
        SampleRNN(dim=4, embedding_dim=4)(torch.zeros(1, 40, dtype=torch.int64))


@torch.no_grad()
def test_pipelines_save_and_load_them(model: AutoregressiveModel, tmp_path) -> None:
    from sashimi_diffusion.pipelines import SashimiAutoregressivePipeline

    model = model.float()
    SashimiAutoregressivePipeline(model).save_pretrained(tmp_path)
    loaded = SashimiAutoregressivePipeline.from_pretrained(tmp_path).model
    tokens = torch.randint(16, (1, 96))
    assert torch.equal(loaded(tokens), model(tokens))
