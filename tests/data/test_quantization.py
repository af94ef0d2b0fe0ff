"""Tests of quantization against the official definition, and of encoding and decoding."""

import math

import pytest
import torch

from sashimi_diffusion.data.quantization import QUANTIZATIONS, decode, encode, normalize
from sashimi_diffusion.errors import UserError


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_every_level_is_recovered(quantization: str) -> None:
    tokens = torch.arange(256)
    edges = decode(torch.arange(257), quantization)
    # A decoded level is the left edge of its interval, but the official scale is 0.01 of a level too small. Encode the
    # middles instead.
    middles = (edges[:-1] + edges[1:]) / 2
    scaled = middles if quantization == "mu-law" else (middles + 1) / 2
    assert torch.equal(encode(scaled, quantization), tokens)


def test_mu_law_follows_its_formula() -> None:
    x = torch.linspace(-1, 1, 1001, dtype=torch.float64)
    expected = []
    for value in x.tolist():
        compressed = math.copysign(1, value) * math.log1p(255 * abs(value + 1e-8)) / math.log1p(255)
        share = (compressed if value else 0.0) / 2 + 0.5
        expected.append(math.floor(share * 255.99 + 0.005))
    assert encode(x, "mu-law").tolist() == expected


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_the_middle_level_is_silence(quantization: str) -> None:
    assert decode(torch.tensor([128]), quantization).item() == 0
    assert decode(torch.tensor([0]), quantization).item() == pytest.approx(-1)
    assert decode(torch.tensor([255]), quantization).item() < 1


def test_every_clip_is_scaled_by_its_own_range() -> None:
    clips = torch.tensor([[0.1, 0.2, 0.3], [-4.0, 0.0, 4.0]])
    torch.testing.assert_close(normalize(clips, "mu-law"), torch.tensor([[-1.0, 0, 1], [-1, 0, 1]]), rtol=0, atol=1e-4)
    torch.testing.assert_close(normalize(clips, "linear"), torch.tensor([[0, 0.5, 1], [0, 0.5, 1]]), rtol=0, atol=1e-4)


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_a_constant_clip_is_level_zero(quantization: str) -> None:
    assert encode(normalize(torch.full((1, 5), 0.3), quantization), quantization).tolist() == [[0] * 5]


def test_an_unknown_quantization_is_refused() -> None:
    with pytest.raises(UserError, match="expected one of mu-law, linear"):
        encode(torch.zeros(1), "a-law")
