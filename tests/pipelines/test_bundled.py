"""Tests of the bundled pipelines: the claims of the README and of their model cards."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from sashimi_diffusion import SashimiAutoregressivePipeline, SashimiPipeline
from sashimi_diffusion.commands.sample import main
from sashimi_diffusion.generation.runaway import runaway_second
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


@pytest.fixture(scope="module")
def turbo() -> SashimiPipeline:
    pipe = SashimiPipeline.from_pretrained("sashimi-digits-turbo")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def piano() -> SashimiAutoregressivePipeline:
    pipe = SashimiAutoregressivePipeline.from_pretrained("sashimi-piano")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize(
    ("name", "largest"),
    [("sashimi-digits", 8e6), ("sashimi-digits-turbo", 6e6), ("sashimi-piano", 10e6), ("sashimi-words", 12e6)],
)
def test_the_pipelines_are_small_and_have_cards(name: str, largest: float) -> None:
    files = [path for path in (BUNDLED / name).rglob("*") if path.suffix in (".json", ".safetensors")]
    assert sum(path.stat().st_size for path in files) < largest
    card = (BUNDLED / name / "README.md").read_text()
    assert all(heading in card for heading in ("## Results", "## Training", "## Limits", "## License"))
    assert (BUNDLED / name / "contact_sheet.png").is_file()


def test_it_has_digits_and_speakers(pipe: SashimiPipeline) -> None:
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


def test_the_student_samples_in_four_steps_without_guidance(pipe: SashimiPipeline, turbo: SashimiPipeline) -> None:
    audios = turbo(
        class_labels=list(range(10)), speaker_labels="theo", generator=torch.Generator().manual_seed(0)
    ).audios
    assert turbo.num_timesteps == 4
    assert audios.shape == (10, 1, 5120)
    assert turbo.model.config.speaker_names == pipe.model.config.speaker_names
    _, probabilities = load_classifier().classify(audios[:, 0], 8000)
    assert (probabilities.argmax(axis=1) == np.arange(10)).mean() >= 0.8


def test_the_words_have_a_second_at_16_khz() -> None:
    pipe = SashimiPipeline.from_pretrained("sashimi-words")
    pipe.set_progress_bar_config(disable=True)
    assert pipe.model.config.class_names == ["zero", "one", "five", "eight", "down", "go", "left", "right", "up"]
    assert pipe.model.config.sample_rate == 16000
    audios = pipe(class_labels=["left", "go"], num_inference_steps=2).audios
    assert audios.shape == (2, 1, 16000)
    assert np.isfinite(audios).all()


@pytest.mark.slow
def test_some_words_are_classified_correctly() -> None:
    """Classify 27 clips, each word three times; a guess would be right for three of them."""
    pipe = SashimiPipeline.from_pretrained("sashimi-words")
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = create_scheduler("dpmsolver++-sde-karras", pipe.scheduler.config)
    labels = list(range(9)) * 3
    audios = pipe(27, 20, generator=torch.Generator().manual_seed(0), class_labels=labels).audios[:, 0]
    _, probabilities = load_classifier("words-small").classify(audios, 16000)
    assert (probabilities.argmax(axis=1) == labels).sum() >= 8
    assert not any(signal_properties(waveform, 16000).silent for waveform in audios)


def test_the_piano_is_streamed_and_continues_a_recording_by_name(tmp_path: Path) -> None:
    first, second = tmp_path / "first.wav", tmp_path / "second"
    named = ["--pipeline", "sashimi-piano"]
    assert main([*named, "--stream", str(first), "--seconds", "0.2"]) == 0
    waveform, rate = soundfile.read(first)
    assert (len(waveform), rate) == (3200, 16000)
    assert main([*named, "--prefix", str(first), "--seconds", "0.3", "--num-samples", "1", "--out", str(second)]) == 0
    longer, rate = soundfile.read(second / "0000.wav")
    assert (len(longer), rate) == (4800, 16000)
    assert np.abs(longer[3200:]).max() > 0


@pytest.mark.slow
def test_the_piano_does_not_become_noise(piano: SashimiAutoregressivePipeline) -> None:
    audios = piano(batch_size=4, audio_length_in_s=20, generator=torch.Generator().manual_seed(0)).audios[:, 0]
    assert all(runaway_second(waveform, 16000) is None for waveform in audios)
    assert not any(signal_properties(waveform, 16000).silent for waveform in audios)
