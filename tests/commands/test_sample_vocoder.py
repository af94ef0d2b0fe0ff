"""Tests of ``sashimi-sample --resynthesize`` and ``--mel``."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from sashimi_diffusion.commands import sample
from sashimi_diffusion.models import WaveNetDenoiser
from sashimi_diffusion.pipelines import SashimiPipeline, resynthesize
from sashimi_diffusion.schedulers import DiffWaveScheduler

SETTINGS = {"n_fft": 64, "f_max": 500.0}


def save_pipeline(folder: Path, **options: Any) -> Path:
    torch.manual_seed(0)
    options = {"mel_channels": 5, "mel_upsample": (4, 4), "mel_settings": SETTINGS, **options}
    sizes = {"residual_channels": 4, "skip_channels": 4, "n_layers": 2}
    embedding = {"embedding_sines": 8, "embedding_hidden": 8, "embedding_dim": 8}
    model = WaveNetDenoiser(sample_rate=1000, sample_size=64, waveform_std=0.1, **sizes, **embedding, **options)
    torch.nn.init.normal_(model.output[-1].weight, std=0.3)
    if model.speaker_embedding is not None:
        torch.nn.init.normal_(model.speaker_embedding.weight)
    SashimiPipeline(model, DiffWaveScheduler(10, beta_end=0.2)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def vocoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pipeline(tmp_path_factory.mktemp("vocoder"))


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recordings")
    noise = 0.1 * np.random.default_rng(0).standard_normal(3000)
    (folder / "deep").mkdir()
    soundfile.write(folder / "long.wav", noise[:2000], 1000)
    soundfile.write(folder / "short.wav", noise[:7], 1000)
    soundfile.write(folder / "deep" / "rate.flac", noise[:333], 2000)
    return folder


def run(folder: Path, out: Path, *arguments: object) -> int:
    return sample.main(["--pipeline", str(folder), "--out", str(out), "--device", "cpu", *map(str, arguments)])


def record(out: Path) -> dict:
    return json.loads((out / "samples.json").read_text())


def error(capsys: pytest.CaptureFixture) -> str:
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line.removeprefix("error: ")


def test_copy_synthesis_of_a_folder(
    vocoder: Path, recordings: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert run(vocoder, tmp_path, "--resynthesize", recordings, "--steps", 2, "--window", 0.8, "--seed", 3) == 0
    captured = capsys.readouterr()
    assert "3 clips, 2.2 s of audio in" in captured.out
    assert "1/3 deep-rate" in captured.err
    lengths = {path.name: soundfile.info(path).frames for path in tmp_path.glob("*.wav")}
    assert lengths == {"deep-rate.wav": 167, "long.wav": 2000, "short.wav": 7}
    made = record(tmp_path)
    assert [one["windows"] for one in made["samples"]] == [1, 4, 1]
    assert made["samples"][1]["source"] == str(recordings / "long.wav")
    assert made["mel"] == {
        **{"bands": 5, "hop": 16, "n_fft": 64, "win_length": None, "f_min": 0.0, "f_max": 500.0, "floor": 1e-5},
        **{"mel_scale": "slaney", "norm": "slaney", "power": 1, "log": "natural", "padding": "center"},
    }
    assert made["overlap_in_s"] == 0.256
    assert made["longest_window_in_s"] <= 0.8
    pipe = SashimiPipeline.from_pretrained(vocoder)
    for one in made["samples"]:
        audio, rate = soundfile.read(one["source"], dtype="float32")
        seeded = torch.Generator().manual_seed(one["seed"])
        again = resynthesize(pipe, audio, rate, window_in_s=0.8, num_inference_steps=2, generator=seeded)
        written = soundfile.read(tmp_path / one["file"])[0]
        np.testing.assert_allclose(np.clip(again, -1, 1), written, atol=2e-5)


def test_the_fast_schedule_and_the_batch_size(vocoder: Path, recordings: Path, tmp_path: Path) -> None:
    for name, batch_size in (("one", 1), ("many", 8)):
        options = ("--scheduler", "diffwave-fast", "--window", 0.5, "--batch-size", batch_size)
        assert run(vocoder, tmp_path / name, "--resynthesize", recordings / "long.wav", *options) == 0
    assert record(tmp_path / "one")["scheduler"]["steps"] == 6
    one, many = (soundfile.read(tmp_path / name / "long.wav", dtype="int16")[0] for name in ("one", "many"))
    assert np.abs(one.astype(int) - many).max() <= 1


def test_a_strength_begins_with_griffin_lim(vocoder: Path, recordings: Path, tmp_path: Path) -> None:
    given = recordings / "long.wav"
    assert run(vocoder, tmp_path, "--resynthesize", given, "--strength", 0.3, "--window", 0.8) == 0
    made = record(tmp_path)
    assert made["strength"] == 0.3
    pipe = SashimiPipeline.from_pretrained(vocoder)
    seeded = torch.Generator().manual_seed(made["samples"][0]["seed"])
    expected = resynthesize(pipe, soundfile.read(given)[0], window_in_s=0.8, strength=0.3, generator=seeded)
    written = soundfile.read(tmp_path / "long.wav")[0]
    np.testing.assert_allclose(np.clip(expected, -1, 1), written, atol=2e-5)


def test_spectrograms_in_files(vocoder: Path, recordings: Path, tmp_path: Path) -> None:
    pipe = SashimiPipeline.from_pretrained(vocoder)
    mel = pipe.mel(soundfile.read(recordings / "long.wav")[0]).numpy()
    np.save(tmp_path / "batch.npy", mel)
    np.save(tmp_path / "plain.npy", mel[0].astype(np.float64))
    files = (tmp_path / "batch.npy", tmp_path / "plain.npy")
    assert run(vocoder, tmp_path / "out", "--mel", *files, "--steps", 3) == 0
    made = record(tmp_path / "out")["samples"]
    assert [(one["file"], one["samples"]) for one in made] == [("batch.wav", 2016), ("plain.wav", 2016)]
    for one in made:
        seeded = torch.Generator().manual_seed(one["seed"])
        expected = pipe(mel=mel, num_inference_steps=3, generator=seeded).audios[0, 0]
        written = soundfile.read(tmp_path / "out" / one["file"])[0]
        np.testing.assert_allclose(np.clip(expected, -1, 1), written, atol=2e-5)


def test_speakers_of_a_vocoder(recordings: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = save_pipeline(tmp_path / "voices", num_speakers=2, speaker_names=["ann", "bob"])
    for name, options in (("none", ()), ("ann", ("--speaker", "ann")), ("both", ("--speaker", "bob,ann"))):
        assert run(folder, tmp_path / name, "--resynthesize", recordings, "--steps", 2, *options) == 0
    heard = {
        name: [one["speaker_name"] for one in record(tmp_path / name)["samples"]] for name in ("none", "ann", "both")
    }
    assert heard == {"none": [None] * 3, "ann": ["ann"] * 3, "both": ["bob", "ann", "bob"]}
    none, ann = (soundfile.read(tmp_path / name / "long.wav")[0] for name in ("none", "ann"))
    assert not np.allclose(none, ann, atol=0.01)
    assert run(folder, tmp_path / "x", "--resynthesize", recordings, "--speaker", "eve") == 2
    assert "no speaker 'eve'" in error(capsys)


def test_an_earlier_pipeline_is_told_the_defaults(
    recordings: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = save_pipeline(tmp_path / "old", mel_settings=None)
    config = json.loads((folder / "model" / "config.json").read_text())
    del config["mel_settings"]
    config["sample_rate"] = 16000
    (folder / "model" / "config.json").write_text(json.dumps(config))
    assert run(folder, tmp_path / "out", "--resynthesize", recordings / "long.wav", "--steps", 1) == 0
    assert (
        "names no mel settings, so the defaults are used: mel_channels 5, hop 16, n_fft 1024" in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--resynthesize", "{}/none.wav"), "none.wav: unreadable (No such file or directory)"),
        (("--resynthesize", "{}/empty"), "no audio in"),
        (("--resynthesize", "{}/text.wav"), "text.wav"),
        (("--resynthesize", "{}/a/x.wav", "{}/b/x.flac"), "x.flac would both become x.wav: give them in two runs"),
        (("--resynthesize", "{}/a", "--num-samples", "2"), "--num-samples does not apply to --resynthesize and --mel"),
        (("--resynthesize", "{}/a", "--seconds", "2"), "--seconds does not apply to --resynthesize and --mel"),
        (("--resynthesize", "{}/a", "--window", "0"), "--window is 0, expected a number of seconds above 0"),
        (("--resynthesize", "{}/a", "--label", "1"), "--label was given, but this model has no classes"),
        (("--window", "2"), "give it recordings with --resynthesize or mel spectrograms"),
        (("--steps", "2"), "this pipeline is a vocoder: give it recordings with --resynthesize"),
        (("--mel", "{}/none.npy"), "none.npy does not exist: expected a mel spectrogram, a file of numpy.save"),
        (("--mel", "{}/a"), "is a folder: expected a mel spectrogram"),
        (("--mel", "{}/text.wav"), "text.wav cannot be read (ValueError): expected an array that numpy.save"),
        (("--mel", "{}/pickle.npy"), "pickle.npy cannot be read (ValueError)"),
        (("--mel", "{}/many.npz"), "many.npz has several arrays: expected one, a .npy file"),
        (
            ("--mel", "{}/turned.npy"),
            "turned.npy: mel has shape (9, 5), expected (B, 5, frames) with 5 bands; the axes",
        ),
        (("--mel", "{}/bands.npy"), "bands.npy: mel has shape (80, 9), expected (B, 5, frames) with 5 bands"),
        (("--mel", "{}/batch.npy"), "batch.npy has 2 spectrograms: expected one in a file"),
        (("--mel", "{}/nan.npy"), "nan.npy: mel has 1 of 45 values that are not finite"),
        (("--mel", "{}/db.npy"), "db.npy: mel has values from -80 to 0, and this vocoder takes natural logarithms"),
        (("--mel", "{}/cut.npz"), "cut.npz cannot be read (BadZipFile): expected an array that numpy.save has written"),
        (("--mel", "{}/huge.npy"), "huge.npy: mel has 45 of 45 values that are not finite"),
        (("--resynthesize", "{}/broken"), "y.wav: unreadable (No such file or directory)"),
        (("--mel", "{}/int.npy"), "int.npy: mel is numbers of int64: expected floating-point numbers"),
    ],
)
def test_wrong_input(
    vocoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture, options: tuple[str, ...], message: str
) -> None:
    for name in ("a", "b", "empty", "broken"):
        (tmp_path / name).mkdir()
    soundfile.write(tmp_path / "a" / "x.wav", np.full(99, 0.1), 1000)
    soundfile.write(tmp_path / "b" / "x.flac", np.full(99, 0.1), 1000)
    (tmp_path / "text.wav").write_text("no sound")
    mel = np.zeros((5, 9))
    np.save(tmp_path / "pickle.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "many.npz", mel=mel, other=mel)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "many.npz").read_bytes()[:60])
    np.save(tmp_path / "huge.npy", mel + 1e300)
    soundfile.write(tmp_path / "broken" / "x.wav", np.full(99, 0.1), 1000)
    (tmp_path / "broken" / "y.wav").symlink_to(tmp_path / "gone.wav")
    np.save(tmp_path / "turned.npy", mel.T)
    np.save(tmp_path / "bands.npy", np.zeros((80, 9)))
    np.save(tmp_path / "batch.npy", np.stack([mel, mel]))
    np.save(tmp_path / "nan.npy", np.where(np.arange(45).reshape(5, 9) == 7, np.nan, mel))
    np.save(tmp_path / "db.npy", np.linspace(-80, 0, 45).reshape(5, 9))
    np.save(tmp_path / "int.npy", mel.astype(int))
    assert run(vocoder, tmp_path / "out", *(option.format(tmp_path) for option in options)) == 2
    printed = capsys.readouterr().err.splitlines()
    assert message in printed[-1]
    assert [line for line in printed if line.startswith("warning: ")] == []
    assert not (tmp_path / "out").exists()


def test_overwriting_removes_no_recording(
    vocoder: Path, recordings: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    assert run(vocoder, out, "--resynthesize", recordings, "--steps", 1) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    for given in (out, out / "long.wav"):
        assert run(vocoder, out, "--resynthesize", given, "--steps", 1, "--overwrite") == 2
        assert "is in the folder of --out, whose clips --overwrite removes" in error(capsys)
        assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_defaults_of_the_mel_that_do_not_fit_a_pipeline(
    recordings: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = save_pipeline(tmp_path / "old", mel_settings=None)
    assert run(folder, tmp_path / "out", "--resynthesize", recordings) == 2
    assert "this vocoder names no mel settings, and the defaults do not fit (mel bands" in error(capsys)


def test_a_pipeline_that_is_no_vocoder(recordings: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = save_pipeline(tmp_path / "plain", mel_channels=None, mel_settings=None)
    assert run(folder, tmp_path / "out", "--resynthesize", recordings) == 2
    assert error(capsys) == f"--resynthesize needs a vocoder, and {folder} takes no mel spectrograms"
    assert run(folder, tmp_path / "out", "--mel", recordings) == 2
    assert error(capsys).startswith("--mel needs a vocoder")
