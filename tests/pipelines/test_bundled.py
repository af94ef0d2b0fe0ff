"""Tests of the bundled pipeline: the claims of the README and of its model card."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sashimi_diffusion import SashimiPipeline
from sashimi_diffusion.commands.sample import main
from sashimi_diffusion.pipelines.loading import BUNDLED
from sashimi_diffusion.schedulers import create_scheduler
from sashimi_evaluation import load_classifier
from sashimi_evaluation.metrics.signal import signal_properties

SPEAKERS = ["george", "jackson", "lucas", "nicolas", "theo", "yweweler"]


@pytest.fixture(scope="module")
def pipe() -> SashimiPipeline:
    pipe = SashimiPipeline.from_pretrained("sashimi-digits")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_it_is_small_and_has_digits_and_speakers(pipe: SashimiPipeline) -> None:
    files = [path for path in (BUNDLED / "sashimi-digits").rglob("*") if path.suffix in (".json", ".safetensors")]
    assert sum(path.stat().st_size for path in files) < 8e6
    assert {parameter.dtype for parameter in pipe.model.parameters()} == {torch.float32}
    assert pipe.model.config.class_names == [str(digit) for digit in range(10)]
    assert pipe.model.config.speaker_names == SPEAKERS


def test_a_call_with_a_label(pipe: SashimiPipeline) -> None:
    audios = pipe(class_labels=[7], num_inference_steps=2).audios
    assert audios.shape == (1, 1, 5120)
    assert np.isfinite(audios).all()


def test_the_command_with_a_label(tmp_path: Path) -> None:
    arguments = ["--label", "7", "--guidance-scale", "2", "--num-samples", "2", "--steps", "2", "--out", str(tmp_path)]
    assert main(arguments) == 0
    made = json.loads((tmp_path / "samples.json").read_text())
    assert made["guidance_scale"] == 2
    assert [(one["class_name"], one["speaker_name"]) for one in made["samples"]] == [("7", "george"), ("7", "jackson")]


@pytest.mark.slow
def test_its_digits_are_classified_correctly(pipe: SashimiPipeline) -> None:
    """Classify sixty clips, every digit by every speaker, sampled in twenty steps."""
    fast = SashimiPipeline(
        pipe.model, create_scheduler("dpmsolver++-sde-karras", pipe.scheduler.config), pipe.config.guidance_scale
    )
    fast.set_progress_bar_config(disable=True)
    digits = [index % 10 for index in range(60)]
    audios = fast(60, 20, generator=torch.Generator().manual_seed(0), class_labels=digits).audios[:, 0]
    _, probabilities = load_classifier().classify(audios, pipe.model.config.sample_rate)
    assert (probabilities.argmax(axis=1) == digits).mean() >= 0.9
    properties = [signal_properties(waveform, pipe.model.config.sample_rate) for waveform in audios]
    assert not any(clip.silent or clip.clipped > 1e-3 for clip in properties)
    levels = [clip.level for clip in properties]
    assert -32 < np.mean(levels) < -26  # the mean of the recordings is -30 dB relative to full scale
