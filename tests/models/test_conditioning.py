"""Tests of the conditioning: diffusion step, class, speaker, mel spectrogram."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.models.conditioning import LabelEmbedding, MelUpsampler, StepEmbedding, validate_conditioning


def step_table(embedding: StepEmbedding, timestep: torch.Tensor | float, batch_size: int) -> torch.Tensor:
    """Return the input of the first linear layer of ``embedding``."""
    seen = []
    handle = embedding.hidden.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    embedding(timestep, batch_size)
    handle.remove()
    return seen[0]


@torch.no_grad()
@pytest.mark.parametrize("name", ["ckpt_sashimi_unet_uncond", "ckpt_sashimi_snet_uncond", "master_wavenet_uncond"])
def test_step_table_matches_the_official_one(golden, name: str) -> None:
    tensors = golden.tensors(f"d_diffwave/{name}")
    expected = tensors["out.step_embed_in"]
    steps = tensors["in.steps"][:, 0]
    table = step_table(StepEmbedding(expected.shape[1], 4, 4), steps, len(steps))
    torch.testing.assert_close(table, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_step_may_be_fractional_or_shared_by_the_batch() -> None:
    embedding = StepEmbedding(8, 16, 12)
    table = step_table(embedding, torch.tensor([2.5, 199.0]), 2)
    for row, step in zip(table, (2.5, 199.0), strict=True):
        angles = [step * 10000 ** (-k / 3) for k in range(4)]
        expected = torch.tensor([math.sin(x) for x in angles] + [math.cos(x) for x in angles])
        torch.testing.assert_close(row, expected, rtol=0, atol=3e-5)
    assert torch.equal(embedding(7, 3), embedding(torch.tensor([7, 7, 7]), 3))
    assert embedding(7, 3).shape == (3, 12)


@torch.no_grad()
def test_step_table_is_computed_in_float32() -> None:
    embedding = StepEmbedding(8, 16, 12)
    expected = step_table(embedding, 191, 1)
    table = step_table(embedding.bfloat16(), 191, 1)
    assert table.dtype == torch.bfloat16
    assert torch.equal(table, expected.bfloat16())


@torch.no_grad()
def test_label_embedding_starts_at_zero_and_its_last_row_is_no_label() -> None:
    embedding = LabelEmbedding(10, 6)
    assert embedding.weight.shape == (11, 6)
    assert torch.equal(embedding(torch.tensor([0, 9, 10]), 3), torch.zeros(3, 6))
    torch.nn.init.normal_(embedding.weight)
    assert torch.equal(embedding(None, 2), embedding.weight[[10, 10]])


@pytest.mark.parametrize(("factors", "length"), [((4, 2), 48), ((16, 16), 1536), ((1, 3), 22), ((5, 2), 62)])
def test_mel_is_upsampled_by_transposed_convolutions(factors: tuple[int, int], length: int) -> None:
    torch.manual_seed(0)
    upsampler = MelUpsampler(factors, 5, 3)
    mel = torch.randn(2, 5, 6)
    x = mel.unsqueeze(1)
    for layer, factor in zip(upsampler.upsample, factors, strict=True):
        x = F.conv_transpose2d(x, layer.weight, layer.bias, stride=(1, factor), padding=(1, factor // 2))
        x = F.leaky_relu(x, 0.4)
    assert x.shape == (2, 1, 5, length)
    expected = upsampler.projection(x.squeeze(1))
    output = upsampler(mel, length)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(upsampler(mel, length - 7), output[..., : length - 7])

    parameters = list(upsampler.parameters())
    weights = torch.randn_like(expected)
    gradients = [torch.autograd.grad((y * weights).sum(), parameters) for y in (output, expected)]
    for own, reference in zip(*gradients, strict=True):
        torch.testing.assert_close(own, reference, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_slower_stage_gets_the_mel_of_the_same_time() -> None:
    torch.manual_seed(0)
    full = MelUpsampler((4, 4), 5, 3)
    slow = MelUpsampler((4, 4), 5, 3, stride=4)
    slow.load_state_dict(full.state_dict())
    mel = torch.randn(2, 5, 6)
    averaged = full(mel, 96).unflatten(-1, (24, 4)).mean(-1)
    torch.testing.assert_close(slow(mel, 24), averaged)
    changed = mel.clone()
    changed[..., 5] += 10  # the last frame: samples 80 to 96, or 20 to 24 at a quarter of the rate, and their overlap
    difference = (slow(changed, 24) - slow(mel, 24)).abs().amax((0, 1))
    assert difference[:17].max() == 0
    assert difference[20:].min() > 0


@pytest.mark.parametrize(
    ("config", "arguments", "message"),
    [
        ({}, {"class_labels": torch.tensor([0, 0])}, "model without classes"),
        ({"num_classes": 3}, {"class_labels": torch.tensor([0])}, "one class label per example"),
        ({"num_classes": 3}, {"class_labels": torch.tensor([0, 4])}, "from 0 to 2"),
        ({"num_classes": 3}, {"class_labels": torch.tensor([-1, 0])}, "from 0 to 2"),
        ({"num_classes": 3}, {"speaker_labels": torch.tensor([0, 0])}, "without speaker conditioning"),
        ({"num_speakers": 3}, {"class_labels": torch.tensor([0, 0])}, "model without classes"),
        ({"num_speakers": 3}, {"speaker_labels": torch.tensor([[0, 0]])}, "one speaker label per example"),
        (
            {"num_speakers": 3},
            {"speaker_labels": torch.tensor([0, 4])},
            r"from 0 to 2 \(3 for no speaker\), got \[0, 4\]",
        ),
        ({"num_speakers": 3}, {"speaker_labels": torch.tensor([-1, 0])}, "from 0 to 2"),
        ({}, {"mel": torch.zeros(2, 5, 4)}, "without mel conditioning"),
        ({"mel_channels": 5}, {}, "vocoder"),
        ({"mel_channels": 5}, {"mel": torch.zeros(2, 6, 4)}, r"\(2, 5, frames\)"),
        ({"mel_channels": 5}, {"mel": torch.zeros(1, 5, 4)}, r"\(2, 5, frames\)"),
        ({"mel_channels": 5}, {"mel": torch.zeros(2, 5, 3)}, "at least 4 frames"),
    ],
)
def test_conditioning_that_does_not_fit_is_named(config: dict, arguments: dict, message: str) -> None:
    nothing = {
        "in_channels": 1,
        "num_classes": None,
        "num_speakers": None,
        "mel_channels": None,
        "mel_upsample": (4, 4),
    }
    config = SimpleNamespace(**nothing | config)
    with pytest.raises(UserError, match=message):
        validate_conditioning(config, torch.zeros(2, 1, 64), **{"class_labels": None, "mel": None, **arguments})


def test_conditioning_that_fits_passes() -> None:
    config = SimpleNamespace(in_channels=1, num_classes=3, num_speakers=4, mel_channels=5, mel_upsample=(4, 4))
    sample, mel = torch.zeros(2, 1, 64), torch.zeros(2, 5, 4)
    validate_conditioning(config, sample, torch.tensor([0, 3]), mel, torch.tensor([0, 4]))
    validate_conditioning(config, sample, None, mel)
