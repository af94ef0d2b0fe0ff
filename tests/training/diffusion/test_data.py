"""Tests of the data of diffusion runs: labels that are automatic or from sub-folders, several channels, rates."""

import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from accelerate import Accelerator

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
        assert "held-out examples, no classes; 1" in automatic.description  # then the share that is not used


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
    changes = (
        "; 1 of 7 recordings are resampled from 16000 Hz to 8000 Hz; "
        "6 of 7 recordings are stereo and are mixed to one channel; "
    )
    assert changes in mono.description
    assert mono.description.endswith(
        " 2 of 3 recordings go on after their last example of 0.03 s, by 0.01 s on average"
    )
    again = task(tiny_config(*settings))  # from the cache
    assert again.description == mono.description
    with pytest.raises(UserError, match=r"1 of 7 audio files .* 0_b_0\.wav: 1 channel instead of 2; "):
        task(tiny_config(*settings, "model.in_channels=2"))
    with pytest.warns(UserWarning, match="1 channel instead of 2"):
        DiffusionTask(tiny_config(*settings, "model.in_channels=2"), torch.device("cpu"), True)
    with pytest.raises(UserError, match="Speech Commands has one channel"):
        task(tiny_config(*settings, "model.in_channels=2", "data.kind=speech_commands"))


def test_a_hugging_face_data_set(tiny_config, recordings, tmp_path):
    """A run of it equals that of the files: the recordings and their labels are the same, in another order."""
    pytest.importorskip("datasets", reason="needs the package datasets")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pytest.importorskip("pyarrow").Table
    (tmp_path / "table").mkdir()
    files = sorted(recordings.glob("*.wav"))
    names = [dict(zip(("label", "speaker", "index"), file.stem.split("_"), strict=True)) for file in files]
    rows = [{"sound": file.read_bytes(), **own} for file, own in zip(files, names, strict=True)]
    parquet.write_table(table.from_pylist(rows), tmp_path / "table" / "train.parquet")
    settings = [f"data.path={tmp_path / 'table'}", "data.kind=hf_dataset", "data.pattern=null"]
    own = task(tiny_config(*settings, "data.holdout.index=[0]", "data.speakers=speaker"))
    other = task(tiny_config("data.speakers=speaker"))
    assert own.description == other.description
    assert own.network.config.class_names == other.network.config.class_names
    assert len(own.validation.dataset) == len(other.validation.dataset) == 4
    for index in range(len(own.source.dataset)):
        np.testing.assert_array_equal(own.source.dataset.clip(index), other.source.dataset.clip(index))
    assert own.source.dataset.speakers.tolist() == other.source.dataset.speakers.tolist()
    run = train(DiffusionTask, tiny_config(*settings, "data.holdout=null", "training.steps=2"))
    train(DiffusionTask, tiny_config(*settings, "data.holdout=null", "training.steps=3"), resume=True)
    assert SashimiPipeline.from_pretrained(run / "pipeline").model.config.class_names == ["0", "1"]
    with pytest.raises(UserError, match=r"data\.pattern is .*, but data\.kind is hf_dataset: remove it"):
        tiny_config("data.kind=hf_dataset")


@pytest.fixture
def shards(recordings: Path, tmp_path: Path) -> str:
    """Write the recordings into three tar files, and return the pattern of their paths."""
    files = sorted(recordings.glob("*.wav"))
    for number in range(3):
        with tarfile.open(tmp_path / f"part-{number}.tar", "w") as archive:
            for file in files[number::3]:
                archive.add(file, file.name)
    return f"{tmp_path}/part-{{0..2}}.tar"


@pytest.fixture
def streamed(tiny_config, shards):
    """Return a function from overrides to the config of the tiny network, with recordings in tar files."""
    settings = [f"data.path={shards}", "data.kind=webdataset", "data.holdout=null", "data.splits=[0.7,0.3,0]"]
    return lambda *overrides: tiny_config(*settings, "data.shuffle_buffer=4", *overrides)


def test_a_run_with_tar_files_that_is_stopped_is_the_uninterrupted_run(streamed, tmp_path):
    settings = ["optimizer.decay=constant", "sampling.num_samples=0", "training.validate_every=0"]
    for steps in (3, 5, 8):  # no epoch ends there
        run = train(DiffusionTask, streamed(*settings, f"training.steps={steps}"), resume=steps > 3)
    whole = train(DiffusionTask, streamed(*settings, f"output_dir={tmp_path / 'whole'}"))
    assert SashimiPipeline.from_pretrained(whole / "pipeline").model.config.class_names == ["0", "1"]
    for name in ("model.safetensors", "ema.safetensors"):
        last = f"checkpoints/step-000008/{name}"
        assert (run / last).read_bytes() == (whole / last).read_bytes()


def test_batches_of_tar_files_do_not_depend_on_their_division(streamed):
    """Each process has its own part of the global batch, and reads and decodes only that."""
    one, two = task(streamed()), task(streamed())
    for step in range(6):
        whole = one.batch(step, range(4), 4)
        parts = [two.batch(step, range(start, start + 2), 4) for start in (2, 0)]
        assert torch.equal(whole.waveform, torch.cat([part.waveform for part in reversed(parts)]))
        assert torch.equal(whole.labels, torch.cat([part.labels for part in reversed(parts)]))
    assert one.data == two.data


def test_a_bad_recording_in_a_tar_file_is_replaced_in_every_batch(streamed, shards):
    with tarfile.open(shards.replace("{0..2}", "1"), "a") as archive:
        for name in ("0_x_1.wav", "0_y_1.wav"):
            archive.addfile(tarfile.TarInfo(name))  # no content
    with pytest.raises(UserError, match=r"part-1\.tar/0_[xy]_1\.wav: empty"):
        task(streamed())
    with pytest.warns(UserWarning, match=r"0_[xy]_1\.wav: empty .*; going on without it"):
        first = DiffusionTask(streamed(), torch.device("cpu"), True)
    second = DiffusionTask(streamed(), torch.device("cpu"), True)
    for step in (4, 1, 3):
        assert torch.equal(first.batch(step, range(4), 4).waveform, second.batch(step, range(4), 4).waveform)
    assert first.validate(Accelerator(cpu=True), first.network)["validation_loss"] > 0
