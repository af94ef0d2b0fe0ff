"""Tests of ``sashimi-sample`` with given audio and with windows."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from sashimi_diffusion.commands import sample
from sashimi_diffusion.commands.given_files import keep_ranges
from sashimi_diffusion.data import pictures
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.models import SashimiAutoregressive, WaveNetDenoiser
from sashimi_diffusion.pipelines import SashimiAutoregressivePipeline, SashimiPipeline
from sashimi_diffusion.schedulers import DiffWaveScheduler

RATE, LENGTH = 1000, 200


def save_pipeline(folder: Path, **options: object) -> Path:
    torch.manual_seed(0)
    sizes = {"residual_channels": 4, "skip_channels": 4, "n_layers": 2}
    embedding = {"embedding_sines": 8, "embedding_hidden": 8, "embedding_dim": 8}
    audio = {"sample_rate": RATE, "sample_size": LENGTH, "waveform_std": 0.1}
    model = WaveNetDenoiser(**sizes, **embedding, **audio, **options)
    torch.nn.init.normal_(model.output[-1].weight, std=0.3)
    for table in (model.class_embedding, model.speaker_embedding):
        if table is not None:
            torch.nn.init.normal_(table.weight)
    SashimiPipeline(model, DiffWaveScheduler(10, beta_end=0.2)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    labels = {"num_classes": 2, "class_names": ["no", "yes"], "num_speakers": 2, "speaker_names": ["ann", "bob"]}
    return save_pipeline(tmp_path_factory.mktemp("labeled"), **labels)


@pytest.fixture(scope="module")
def stereo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pipeline(tmp_path_factory.mktemp("stereo"), in_channels=2, out_channels=2)


def noise(samples: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    return 0.1 * np.random.default_rng(seed).standard_normal((samples, channels))


@pytest.fixture
def word(tmp_path: Path) -> Path:
    soundfile.write(tmp_path / "word.wav", noise(LENGTH), RATE)
    return tmp_path / "word.wav"


def run(folder: Path, out: Path, *arguments: object) -> int:
    options = ["--pipeline", folder, "--out", out, "--device", "cpu", *arguments]
    return sample.main([str(option) for option in options])


def record(out: Path) -> dict:
    return json.loads((out / "samples.json").read_text())


def read(path: Path) -> np.ndarray:
    return soundfile.read(path, dtype="int16", always_2d=True)[0].astype(int)


def test_variations_of_a_recording(folder: Path, tmp_path: Path, word: Path) -> None:
    for strength in (0.1, 1):
        out = tmp_path / str(strength)
        assert run(folder, out, "--audio", word, "--strength", strength, "--num-samples", 2) == 0
    assert sorted(path.name for path in (tmp_path / "0.1").glob("*.wav")) == ["0000-word.wav", "0001-word.wav"]
    near, far = (
        [np.abs(read(path) - read(word)).mean() for path in sorted((tmp_path / name).glob("*.wav"))]
        for name in ("0.1", "1")
    )
    assert max(near) < 0.5 * min(far)
    made = record(tmp_path / "0.1")
    assert made["given"]["strength"] == 0.1
    assert made["given"]["files"][0]["file"] == str(word)
    assert len(made["given"]["files"][0]["sha256"]) == 64
    assert [(clip["audio"], clip["samples"], clip["label"]) for clip in made["samples"]] == [
        (str(word), LENGTH, None)
    ] * 2


def test_kept_parts_are_the_samples_of_the_file(folder: Path, tmp_path: Path, word: Path) -> None:
    out = tmp_path / "out"
    arguments = ["--keep", "0:0.05,0.1:", "--label", "yes", "--jumps", 2, "--num-samples", 2]
    assert run(folder, out, "--audio", word, *arguments) == 0
    for name in ("0000-word-yes-ann.wav", "0001-word-yes-bob.wav"):
        made, given = read(out / name), read(word)
        np.testing.assert_array_equal(made[:50], given[:50])
        np.testing.assert_array_equal(made[100:], given[100:])
        assert np.abs(made[50:100] - given[50:100]).max() > 100
    sheet = np.asarray(Image.open(out / "contact_sheet.png").convert("RGB")).astype(int)
    orange = ((sheet[..., 0] - sheet[..., 2]) > 200) & (abs(sheet[..., 1] - 140) < 5)
    columns = np.flatnonzero(orange.any(axis=0))
    assert len(columns) == 2 * 75  # in both tiles, a quarter of the time axis of 300 pixels
    assert columns[0] == pictures._MARGIN + pictures._LEFT + 75
    assert record(out)["given"]["jumps"] == 2


def test_a_recording_is_continued_in_windows(
    folder: Path, tmp_path: Path, word: Path, capsys: pytest.CaptureFixture
) -> None:
    assert run(folder, tmp_path / "out", "--audio", word, "--continue", "--seconds", 1.5) == 0
    made = read(tmp_path / "out" / "0000-word.wav")
    assert len(made) == 1500
    np.testing.assert_array_equal(made[:LENGTH], read(word))
    captured = capsys.readouterr()
    assert "note: a clip of 1.5 s is longer than the 0.2 s of the training: it is generated in windows" in captured.err
    assert "1 clip, 1.5 s of audio in" in captured.out
    assert record(tmp_path / "out")["window"] == 0.2


def test_windows_of_long_clips_do_not_depend_on_the_batch_size(folder: Path, tmp_path: Path) -> None:
    for size in (1, 7):
        arguments = ["--seconds", 0.6, "--window", 0.2, "--num-samples", 3, "--batch-size", size, "--steps", 4]
        assert run(folder, tmp_path / str(size), *arguments) == 0
    names = sorted(path.name for path in (tmp_path / "1").glob("*.wav"))
    assert len(names) == 3
    for name in names:
        first = read(tmp_path / "1" / name)
        assert len(first) == 600
        assert np.abs(read(tmp_path / "7" / name) - first).max() <= 1


def test_a_folder_gives_one_clip_of_each_file_whatever_its_length_and_rate(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    given = tmp_path / "given"
    given.mkdir()
    for name, samples, rate, level in (("a", 200, RATE, 1), ("b", 150, RATE, 1e-4), ("c", 400, 2 * RATE, 1)):
        soundfile.write(given / f"{name}.wav", level * noise(samples), rate, subtype="FLOAT")
    assert run(folder, tmp_path / "out", "--audio", given, "--strength", 0.3, "--batch-size", 2) == 0
    lengths = {path.name: len(read(path)) for path in (tmp_path / "out").glob("*.wav")}
    assert lengths == {"0000-a.wav": 200, "0001-b.wav": 150, "0002-c.wav": 200}
    errors = capsys.readouterr().err
    assert f"note: {given / 'c.wav'} is resampled from 2000 Hz to the model's 1000 Hz" in errors
    assert f"note: {given / 'b.wav'} is 80 dB below the level of the training recordings" in errors
    assert "warning" not in errors
    made = record(tmp_path / "out")
    assert made["samples_per_clip"] is None
    assert [clip["samples"] for clip in made["samples"]] == [200, 150, 200]
    assert [file["sample_rate"] for file in made["given"]["files"]] == [1000, 1000, 2000]


def test_only_recordings_that_become_clips_are_examined(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    given = tmp_path / "given"
    given.mkdir()
    soundfile.write(given / "a.wav", noise(LENGTH), RATE)
    soundfile.write(given / "b.wav", noise(900), 2 * RATE)
    assert run(folder, tmp_path / "out", "--audio", given, "--strength", 0.3, "--num-samples", 1) == 0
    assert "note:" not in capsys.readouterr().err
    made = record(tmp_path / "out")
    assert made["samples_per_clip"] == LENGTH
    assert [file["file"] for file in made["given"]["files"]] == [str(given / "a.wav")]


def test_channels_that_are_mixed_are_said(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    stereo = tmp_path / "stereo.wav"
    soundfile.write(stereo, noise(LENGTH, 2), RATE)
    assert run(folder, tmp_path / "out", "--audio", stereo, "--strength", 0.3) == 0
    assert f"note: {stereo} has 2 channels, and the model gets their mean" in capsys.readouterr().err
    assert record(tmp_path / "out")["given"]["files"][0]["channels"] == 2


@pytest.mark.slow
def test_several_processes_make_the_clips_of_one(folder: Path, tmp_path: Path) -> None:
    given = tmp_path / "given"
    given.mkdir()
    for index, samples in enumerate((200, 150, 200, 260, 150)):
        soundfile.write(given / f"{index}.wav", noise(samples, seed=index), RATE)
    arguments = ["--audio", str(given), "--keep", "0:0.1", "--batch-size", "2"]
    assert run(folder, tmp_path / "one", *arguments) == 0
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launch, "-m", "sashimi_diffusion.commands.sample", "--pipeline", str(folder), "--device", "cpu"]
    command += ["--out", str(tmp_path / "two"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    assert done.stderr.count("is longer than the 0.2 s of the training") == 1
    made = {name: sorted((tmp_path / name).glob("*.wav")) for name in ("one", "two")}
    assert [path.name for path in made["one"]] == [path.name for path in made["two"]] != []
    for one, two in zip(*made.values(), strict=True):
        assert np.abs(read(one) - read(two)).max() <= 1
    records = [record(tmp_path / name) for name in ("one", "two")]
    assert records[0]["samples"] == records[1]["samples"]
    assert records[0]["given"] == records[1]["given"]


def test_both_channels_of_a_recording_are_kept(stereo_folder: Path, tmp_path: Path, word: Path) -> None:
    soundfile.write(tmp_path / "stereo.wav", noise(LENGTH, 2), RATE)
    out = tmp_path / "out"
    assert run(stereo_folder, out, "--audio", tmp_path / "stereo.wav", "--keep", "0.1:") == 0
    np.testing.assert_array_equal(read(out / "0000-stereo.wav")[100:], read(tmp_path / "stereo.wav")[100:])
    assert run(stereo_folder, tmp_path / "mono", "--audio", word, "--keep", "0.1:") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--strength", "0"], "--strength is 0: expected a number above 0, up to 1"),
        (["--strength", "1.5"], "--strength is 1.5"),
        (["--strength", "nan"], "--strength is nan"),
        (["--strength", "0.01"], "strength is 0.01, and the last of 10 sampling steps begins at 0.1"),
        (["--strength", "0.5", "--keep", "0:0.1"], "--strength and --keep were given: give one of them"),
        (["--keep", "0:0.1", "--continue"], "--keep and --continue were given"),
        ([], "--audio needs to know what to do"),
        (["--strength", "0.5", "--seconds", "1"], "--seconds does not apply to --strength"),
        (["--strength", "0.5", "--jumps", "1"], "--jumps does not apply to --strength"),
        (["--keep", "0:0.1", "--jumps", "-1"], "jumps is -1"),
        (["--continue"], "--continue needs --seconds"),
        (["--continue", "--seconds", "0.1"], "has 0.2 s, --seconds asks for 0.1 s with its continuation"),
        (["--keep", "0.1:0.05"], "the range 0.1:0.05 ends before it begins"),
        (["--keep", "0:0.3"], "goes beyond the end of"),
        (["--keep", "0.3:"], "goes beyond the end of"),
        (["--keep", ":"], "keeps everything of"),
        (["--keep", "0:0.0001"], "keeps nothing of"),
        (["--keep", "0.1"], "'0.1' is no range: expected START:END in seconds"),
        (["--strength", "0.5", "--speaker", "ann"], "--speaker with --audio needs --label"),
        (["--strength", "0.5", "--window", "0.1", "--overlap", "0.2"], "--overlap is 0.2, --window is 0.1"),
        (["--strength", "0.5", "--overlap", "0.1"], "--overlap was given without --window"),
        (["--strength", "0.5", "--window", "-1"], "--window is -1.0: expected a number of seconds above 0"),
        (["--continue", "--seconds", "1000000", "--window", "900000"], "GiB of memory"),
    ],
)
def test_wrong_options_are_one_line_and_nothing_is_written(
    arguments: list[str], message: str, folder: Path, tmp_path: Path, word: Path, capsys: pytest.CaptureFixture
) -> None:
    assert run(folder, tmp_path / "out", "--audio", word, *arguments) == 2
    errors = capsys.readouterr().err.splitlines()
    assert message in errors[-1]
    assert errors[-1].startswith("error: ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", [["--strength", "0.5"], ["--keep", "0:1"], ["--continue"], ["--jumps", "1"]])
def test_options_for_given_audio_need_it(
    option: list[str], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert run(folder, tmp_path / "out", *option) == 2
    assert f"error: {option[0]} needs a recording: give it with --audio" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "does not exist"), (b"no audio", "not audio that soundfile can read"), (b"", "empty (0 bytes)")],
)
def test_files_that_are_no_audio_are_refused(
    content: bytes | None, message: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    if content is not None:
        (tmp_path / "a.wav").write_bytes(content)
    assert run(folder, tmp_path / "out", "--audio", tmp_path / "a.wav", "--strength", 0.5) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_a_recording_is_never_replaced(folder: Path, tmp_path: Path, word: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "out"
    assert run(folder, out, "--audio", word, "--strength", 0.5) == 0
    (tmp_path / "link.wav").symlink_to(out / "0000-word.wav")
    before = (out / "0000-word.wav").read_bytes()
    for given in (out / "0000-word.wav", tmp_path / "link.wav", out):
        assert run(folder, out, "--audio", given, "--strength", 0.5, "--overwrite") == 2
        assert "is in the folder of --out, whose clips --overwrite removes" in capsys.readouterr().err
        assert (out / "0000-word.wav").read_bytes() == before


def test_an_autoregressive_pipeline_has_a_prefix_instead(
    tmp_path: Path, word: Path, capsys: pytest.CaptureFixture
) -> None:
    model = SashimiAutoregressive(sample_rate=RATE, sample_size=LENGTH, d_model=8, n_layers=1, n_state=4)
    SashimiAutoregressivePipeline(model.eval()).save_pretrained(tmp_path / "autoregressive")
    for arguments in (["--continue", "--seconds", 1], []):
        assert run(tmp_path / "autoregressive", tmp_path / "out", "--audio", word, *arguments) == 2
        assert "is an autoregressive pipeline; continue a recording with --prefix" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0:0.25,0.5:", [(0, 0.25), (0.5, None)]),
        (":1", [(0, 1)]),
        (" 1:2 , 3:4 ", [(1, 2), (3, 4)]),
        (":", [(0, None)]),
    ],
)
def test_ranges(text: str, expected: list) -> None:
    assert keep_ranges(text) == expected


@pytest.mark.parametrize("text", ["", "a:b", "1:2:3", "-1:2", "0:nan", "0:inf", "0:0.1,", "0.2:0.2", "0.1"])
def test_texts_that_are_no_ranges(text: str) -> None:
    with pytest.raises(UserError, match=r"expected START:END|ends before it begins"):
        keep_ranges(text)
