"""Tests of sampling a token, of its score, and of the detection of clips that turn into noise."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sashimi_diffusion.generation import Sampling, sample_tokens
from sashimi_diffusion.generation.runaway import runaway_second

PROBABILITIES = torch.tensor([0.1, 0.4, 0.2, 0.3], dtype=torch.float64)
EVENLY_SPACED = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000


def frequencies(sampling: Sampling) -> list[float]:
    logits = PROBABILITIES.log().expand(len(EVENLY_SPACED), -1)
    tokens, _, _ = sample_tokens(logits, EVENLY_SPACED, sampling)
    return (torch.bincount(tokens, minlength=4) / len(EVENLY_SPACED)).tolist()


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(), [0.1, 0.4, 0.2, 0.3]),
        (Sampling(temperature=0.5), [1 / 30, 16 / 30, 4 / 30, 9 / 30]),
        (Sampling(temperature=0.0), [0, 1, 0, 0]),
        (Sampling(top_k=2), [0, 4 / 7, 0, 3 / 7]),
        (Sampling(top_k=9), [0.1, 0.4, 0.2, 0.3]),
        (Sampling(top_p=0.7), [0, 4 / 7, 0, 3 / 7]),
        (Sampling(top_p=0.71), [0, 4 / 9, 2 / 9, 3 / 9]),
        (Sampling(top_p=0.01), [0, 1, 0, 0]),
        (Sampling(top_k=3, top_p=0.5), [0, 4 / 7, 0, 3 / 7]),
    ],
    ids=str,
)
def test_frequencies_of_tokens_match_their_probabilities(sampling: Sampling, expected: list[float]) -> None:
    assert frequencies(sampling) == pytest.approx(expected, abs=2e-4)


def test_scores_are_those_of_the_model_for_every_sampling() -> None:
    logits = PROBABILITIES.log().expand(2, -1)
    tokens, scores, entropies = sample_tokens(logits, torch.tensor([0.2, 0.9]), Sampling(temperature=0.3, top_k=2))
    torch.testing.assert_close(scores, PROBABILITIES[tokens].log().float())
    entropy = -(PROBABILITIES * PROBABILITIES.log()).sum().float()
    torch.testing.assert_close(entropies, entropy.expand(2))


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1), st.floats(0, 1, exclude_max=True), st.sampled_from([0.01, 1.0, 30.0]))
def test_no_token_of_probability_zero_is_drawn(seed: int, uniform: float, scale: float) -> None:
    logits = scale * torch.randn(1, 64, generator=torch.Generator().manual_seed(seed))
    logits[0, ::2] = -torch.inf
    token, score, entropy = sample_tokens(logits, torch.tensor([uniform], dtype=torch.float64), Sampling())
    assert token.item() % 2 == 1
    assert score.isfinite().all()
    assert entropy.isfinite().all()


def vowel(seconds: float, rate: int = 16000) -> np.ndarray:
    """Return a tone of 120 Hz with its harmonics, like a vowel."""
    t = np.arange(round(seconds * rate)) / rate
    return sum(0.3 / k * np.sin(2 * np.pi * 120 * k * t + k) for k in range(1, 20))


def fricative(seconds: float, rate: int = 16000) -> np.ndarray:
    noise = np.random.default_rng(0).standard_normal(round(seconds * rate))
    return 0.1 * np.diff(noise, n=4, prepend=np.zeros(4))


def test_a_clip_that_turns_into_noise_is_detected() -> None:
    noise = 0.3 * np.random.default_rng(1).standard_normal(8000)
    assert runaway_second(np.concatenate([vowel(0.5), noise]), 16000) == pytest.approx(0.5, abs=0.051)
    assert runaway_second(noise, 16000) == 0


@pytest.mark.parametrize(
    "clip",
    [
        vowel(1.0),
        np.concatenate([vowel(0.6), fricative(0.4)]),
        np.zeros(16000),
        0.01 * np.random.default_rng(2).standard_normal(16000),
        np.concatenate([0.3 * np.random.default_rng(3).standard_normal(8000), vowel(0.5)]),
        np.zeros(10),
    ],
    ids=["vowel", "ends-in-a-fricative", "silence", "hiss", "noise-that-ends", "shorter-than-a-frame"],
)
def test_other_clips_are_not_detected(clip: np.ndarray) -> None:
    assert runaway_second(clip, 16000) is None
