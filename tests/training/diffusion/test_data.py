"""Tests of the data of diffusion runs: labels that are automatic or from sub-folders, several channels, rates."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.pipelines.sashimi import SashimiPipeline
from sashimi_diffusion.training.diffusion.task import DiffusionTask
from sashimi_diffusion.training.loop import train

AUTOMATIC = ["model.class_conditional=null", "sampling.guidance_scale=null", "data.holdout=null"]


@pytest.fixture
def sub_folders(recordings: Path, tmp_path: Path) -> Path:
    """Copy the recordings into a sub-folder for each class."""
    for path in recordings.glob("*.wav"):
        folder = tmp_path / "own" / ("low" if path.name[0] == "0" else "high")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / path.name[2:])
    return tmp_path / "own"


def task(config) -> DiffusionTask:
    return DiffusionTask(config, torch.device("cpu"), False)


def test_sub_folders_are_the_classes(tiny_config, sub_folders):
    run = train(
        DiffusionTask, tiny_config(f"data.path={sub_folders}", "data.pattern=null", *AUTOMATIC, "training.steps=2")
    )
    pipeline = SashimiPipeline.from_pretrained(run / "pipeline")
    assert (pipeline.model.config.class_names, pipeline.config.guidance_scale) == (["high", "low"], 2)
    assert {path.name for path in (run / "samples/step-000002").glob("*.wav")} == {"00-high.wav", "01-low.wav"}
    train(
        DiffusionTask,
        tiny_config(f"data.path={sub_folders}", "data.pattern=null", *AUTOMATIC, "training.steps=3"),
        resume=True,
    )


def test_without_labels_the_automatic_network_has_no_classes(tiny_config, sub_folders):
    for overrides in (["data.pattern=null"], [f"data.path={sub_folders}", "data.pattern={speaker}_{take}"]):
        automatic = task(tiny_config(*overrides, *AUTOMATIC))
        assert automatic.network.config.num_classes is None
        assert automatic.guidance_scale == 1
        assert automatic.description.endswith("held-out examples, no classes")


def test_an_unconditional_network_ignores_sub_folders(tiny_config, sub_folders):
    """Its splits do not depend on the sub-folders as classes, as in older versions."""
    overrides = [f"data.path={sub_folders}", "data.pattern=null", "data.holdout=null"]
    unconditional = task(tiny_config(*overrides, "model.class_conditional=false"))
    assert unconditional.network.config.num_classes is None
    assert set(unconditional.source.dataset.labels) == {-1}


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["model.class_conditional=true"], "model.class_conditional is true, but the recordings have no labels"),
        (["sampling.guidance_scale=2"], "sampling.guidance_scale is 2.0: without classes"),
    ],
)
def test_classes_that_do_not_exist_are_refused(tiny_config, overrides, expected):
    with pytest.raises(UserError) as error:
        task(tiny_config("data.pattern=null", *AUTOMATIC, *overrides))
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


@pytest.fixture
def stereo(tmp_path: Path) -> Path:
    """Write six recordings of two channels, the second at half of the level of the first; one is short."""
    folder = tmp_path / "stereo"
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(6):
        noise = random.uniform(-0.4, 0.4, (200 if number == 0 else 600, 1))
        soundfile.write(folder / f"{number % 2}_a_{number // 2}.wav", np.hstack([noise, noise / 2]), 8000)
    return folder


def test_a_stereo_model(tiny_config, stereo):
    settings = [f"data.path={stereo}", "model.in_channels=2", "training.steps=2", "data.gain_db=0"]
    run = train(DiffusionTask, tiny_config(*settings))
    model = SashimiPipeline.from_pretrained(run / "pipeline").model
    assert (model.config.in_channels, model.config.out_channels) == (2, 2)
    samples, rate = soundfile.read(run / "samples/step-000002/00-0.wav")
    assert (samples.shape, rate) == ((256, 2), 8000)
    assert (run / "samples/step-000002/contact_sheet.png").exists()
    train(DiffusionTask, tiny_config(*settings, "training.steps=3"), resume=True)


def test_batches_of_stereo_recordings(tiny_config, stereo):
    source = task(tiny_config(f"data.path={stereo}", "model.in_channels=2", "data.holdout=null")).source
    batch = source.training_batch(0, range(6), 6)
    assert batch.waveform.shape == batch.noise.shape == (6, 2, 256)
    assert not torch.equal(batch.noise[:, 0], batch.noise[:, 1])
    torch.testing.assert_close(batch.waveform[:, 1], batch.waveform[:, 0] / 2, atol=2e-4, rtol=1e-3)
    windows = source.windows(0, range(6), 6)
    assert source.complete(windows, 0, range(6), 6).noise.shape == (6, 2, 256)
    recordings = source.dataset
    for index in range(len(recordings)):  # the level is that of both channels together
        assert np.sqrt(np.mean(np.square(recordings.clip(index)))) == pytest.approx(0.1, rel=1e-4)
        assert recordings[index]["waveform"].shape == (2, 256)
        assert recordings.clip(index).shape == (2, recordings.clip_length(index))
    assert recordings.rms() > 0


def test_recordings_with_other_numbers_of_channels(tiny_config, stereo):
    """One channel: others are mixed, and the first line of the run says so. Two channels: others are bad files."""
    soundfile.write(stereo / "0_b_0.wav", np.full(300, 0.25), 16000)
    settings = [f"data.path={stereo}", "data.holdout=null", "data.normalize_rms=null"]
    mono = task(tiny_config(*settings))
    assert mono.description.endswith(
        "; 1 of 7 recordings are resampled from 16000 Hz to 8000 Hz; "
        "6 of 7 recordings are stereo and are mixed to one channel"
    )
    again = task(tiny_config(*settings))  # from the cache
    assert again.description == mono.description
    with pytest.raises(UserError, match=r"1 of 7 audio files .* 0_b_0\.wav: 1 channel instead of 2; "):
        task(tiny_config(*settings, "model.in_channels=2"))
    with pytest.warns(UserWarning, match="1 channel instead of 2"):
        DiffusionTask(tiny_config(*settings, "model.in_channels=2"), torch.device("cpu"), True)
    with pytest.raises(UserError, match="Speech Commands has one channel"):
        task(tiny_config(*settings, "model.in_channels=2", "data.kind=speech_commands"))
