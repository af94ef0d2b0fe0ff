"""Tests of ``sashimi-sample`` with an autoregressive pipeline: files, prefixes, streams and errors."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from sashimi_diffusion.commands import sample, sample_autoregressive
from sashimi_diffusion.models import SashimiAutoregressive
from sashimi_diffusion.pipelines import SashimiAutoregressivePipeline

RATE, LENGTH = 8000, 800


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = SashimiAutoregressive(sample_rate=RATE, sample_size=LENGTH, d_model=8, n_layers=1, n_state=4)
    path = tmp_path_factory.mktemp("autoregressive")
    SashimiAutoregressivePipeline(model.eval()).save_pretrained(path)
    return path


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    soundfile.write(tmp_path / "prefix.wav", 0.5 * np.sin(np.arange(200) / 7), RATE)
    return tmp_path / "prefix.wav"


def run(folder: Path, out: Path, *arguments: object) -> int:
    options = ["--pipeline", folder, "--out", out, "--device", "cpu", "--engine", "eager", *arguments]
    return sample.main([str(option) for option in options])


def record(out: Path) -> dict:
    return json.loads((out / "samples.json").read_text())


def test_clips_picture_and_record(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "out"
    assert run(folder, out, "--num-samples", 3, "--batch-size", 2, "--temperature", 0.9, "--top-k", 50) == 0
    assert "samples/s" in capsys.readouterr().out
    assert (out / "contact_sheet.png").is_file()
    written = record(out)
    assert (written["temperature"], written["top_k"], written["top_p"]) == (0.9, 50, 1.0)
    assert [clip["file"] for clip in written["samples"]] == ["0000.wav", "0001.wav", "0002.wav"]
    for clip in written["samples"]:
        waveform, rate = soundfile.read(out / clip["file"])
        assert (len(waveform), rate) == (LENGTH, RATE)
        assert clip["bits_per_sample"] == pytest.approx(-clip["log_likelihood"] / LENGTH / math.log(2))


def test_the_defaults_of_the_pipeline_are_used_and_recorded(folder: Path, tmp_path: Path) -> None:
    model = SashimiAutoregressivePipeline.from_pretrained(folder).model
    SashimiAutoregressivePipeline(model, temperature=0.8, top_p=0.9).save_pretrained(tmp_path / "pipeline")
    assert run(tmp_path / "pipeline", tmp_path / "own", "--num-samples", 1) == 0
    assert run(folder, tmp_path / "given", "--num-samples", 1, "--temperature", 0.8, "--top-p", 0.9) == 0
    assert (tmp_path / "own" / "0000.wav").read_bytes() == (tmp_path / "given" / "0000.wav").read_bytes()
    for out in ("own", "given"):
        written = record(tmp_path / out)
        assert (written["temperature"], written["top_k"], written["top_p"]) == (0.8, None, 0.9)


def test_the_batch_size_does_not_change_the_clips(folder: Path, tmp_path: Path) -> None:
    for size in (1, 3):
        assert run(folder, tmp_path / str(size), "--num-samples", 3, "--batch-size", size) == 0
    for name in ("0000.wav", "0001.wav", "0002.wav"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "3" / name).read_bytes()


def test_a_prefix_is_continued(folder: Path, tmp_path: Path, prefix: Path) -> None:
    out = tmp_path / "out"
    assert run(folder, out, "--num-samples", 2, "--prefix", prefix) == 0
    first, second = (soundfile.read(out / name)[0] for name in ("0000.wav", "0001.wav"))
    np.testing.assert_array_equal(first[:200], second[:200])
    assert np.abs(np.corrcoef(first[:200], soundfile.read(prefix)[0])[0, 1]) > 0.99
    assert not np.array_equal(first[200:], second[200:])
    assert record(out)["prefix"]["file"] == str(prefix)


def test_sorted_clips_keep_their_likelihoods(folder: Path, tmp_path: Path) -> None:
    assert run(folder, tmp_path / "plain", "--num-samples", 6) == 0
    assert run(folder, tmp_path / "sorted", "--num-samples", 6, "--sort-by-likelihood") == 0
    plain = {clip["seed"]: clip for clip in record(tmp_path / "plain")["samples"]}
    clips = sorted(record(tmp_path / "sorted")["samples"], key=lambda clip: clip["file"])
    scores = [clip["log_likelihood"] for clip in clips]
    assert scores == sorted(scores)
    for clip in clips:
        assert clip["log_likelihood"] == plain[clip["seed"]]["log_likelihood"]
        expected = (tmp_path / "plain" / plain[clip["seed"]]["file"]).read_bytes()
        assert (tmp_path / "sorted" / clip["file"]).read_bytes() == expected


def test_the_likelihood_window_omits_both_ends(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(folder, out, "--num-samples", 5, "--likelihood-window", 0.4, 0.2) == 0
    clips = sorted(record(out)["samples"], key=lambda clip: clip["log_likelihood"])
    assert [clip["file"] is not None for clip in clips] == [False, False, True, True, False]
    assert sorted(path.name for path in out.glob("*.wav")) == ["0000.wav", "0001.wav"]


def test_a_stream_equals_the_clip(folder: Path, tmp_path: Path, prefix: Path) -> None:
    assert run(folder, tmp_path / "out", "--num-samples", 1, "--prefix", prefix) == 0
    assert run(folder, tmp_path / "unused", "--stream", tmp_path / "stream.wav", "--prefix", prefix) == 0
    whole, streamed = soundfile.read(tmp_path / "out" / "0000.wav")[0], soundfile.read(tmp_path / "stream.wav")[0]
    np.testing.assert_array_equal(streamed, whole)
    assert not (tmp_path / "unused").exists()


def test_an_interrupted_stream_keeps_the_generated_audio(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, original = tmp_path / "stream.wav", SashimiAutoregressivePipeline.stream

    def two_blocks(*arguments, **options):
        blocks = original(*arguments, **options)
        yield next(blocks)
        yield next(blocks)
        assert len(soundfile.read(file)[0]) == 2 * RATE // 10  # the file is valid before it is closed
        raise KeyboardInterrupt

    monkeypatch.setattr(SashimiAutoregressivePipeline, "stream", two_blocks)
    assert run(folder, tmp_path / "unused", "--stream", file, "--seconds", 10) == 130
    assert len(soundfile.read(file)[0]) == 2 * RATE // 10


def test_a_prefix_at_another_rate_is_resampled_with_a_message(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    pytest.importorskip("torchaudio", reason="torchaudio cannot be imported", exc_type=(ImportError, OSError))
    soundfile.write(tmp_path / "fast.wav", 0.5 * np.sin(np.arange(400) / 14), 2 * RATE)
    assert run(folder, tmp_path / "out", "--num-samples", 1, "--prefix", tmp_path / "fast.wav") == 0
    assert "resampled from 16000 Hz to the model's 8000 Hz" in capsys.readouterr().err


@pytest.mark.parametrize("rate", [RATE, 2 * RATE])
@pytest.mark.parametrize("samples", [np.zeros(50), np.full(50, 0.25), np.ones(1)], ids=["silent", "constant", "one"])
def test_a_prefix_without_sound_is_refused_and_no_file_is_changed(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture, samples: np.ndarray, rate: int
) -> None:
    soundfile.write(tmp_path / "prefix.wav", samples, rate)
    stream = tmp_path / "stream.wav"
    stream.write_bytes(b"made before")
    for arguments in ([], ["--stream", stream]):
        assert run(folder, tmp_path / "out", "--prefix", tmp_path / "prefix.wav", *arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith(
            f"error: --prefix {tmp_path / 'prefix.wav'}: the prefix has no sound (length {len(samples)}, "
        )
        assert error.count("\n") == 1
    assert stream.read_bytes() == b"made before"
    assert not (tmp_path / "out").exists()


def test_a_prefix_shorter_than_a_frame_is_continued(folder: Path, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "short.wav", np.array([0.3, -0.2, 0.1]), RATE)
    assert run(folder, tmp_path / "out", "--num-samples", 1, "--prefix", tmp_path / "short.wav") == 0
    waveform = soundfile.read(tmp_path / "out" / "0000.wav")[0]
    assert waveform[0] > waveform[2] > waveform[1]
    assert len(waveform) == LENGTH


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--temperature", "-1"], "temperature must be 0 (greedy) or above"),
        (["--top-p", "0"], "top_p must be above 0"),
        (["--top-p", "1.2"], "top_p must be above 0 and at most 1"),
        (["--top-k", "0"], "top_k must be at least 1"),
        (["--steps", "20"], "--steps does not apply: "),
        (["--label", "7"], "--label does not apply: "),
        (["--prefix", "nowhere.wav"], "nowhere.wav"),
        (["--seconds", "0"], "above 0"),
        (["--seconds", "1e9"], "MB"),
        (["--seconds", "1e308"], "cannot generate 1e+308 seconds of audio: ask for a number above 0, up to"),
        (["--seconds", "3e5"], "such a file holds at most 4295 MB: ask for fewer --seconds, at most 268435"),
        (["--seconds", "2e5", "--batch-size", "1000000"], "GB are free"),
        (["--num-samples", "1000000000"], "ask for fewer --num-samples"),
        (["--temperature", "1e-300"], "temperature must be 0 (greedy) or above"),
        (["--top-k", "1" + "0" * 30], "top_k must be at least 1"),
        (["--prefix", "/dev/zero"], "/dev/zero: a device, not a regular file"),
        (["--prefix", "/"], "a folder, not a regular file"),
        (["--prefix", "x" * 300], "File name too long"),
        (["--stream", "/"], "--stream / is a folder: expected the name of a file"),
        (["--stream", "nowhere/x.wav"], "nowhere does not exist"),
        (["--stream", "x.wav", "--num-samples", "2"], "--num-samples does not apply: --stream writes one clip"),
        (["--stream", "x.wav", "--likelihood-window", "0.4", "0.1"], "--likelihood-window does not apply: --stream"),
        (["--stream", "x.wav", "--sort-by-likelihood"], "--sort-by-likelihood does not apply: --stream"),
        (["--stream", "x.wav", "--overwrite"], "--overwrite does not apply: --stream"),
        (["--likelihood-window", "0.6", "0.4"], "below 1 together"),
        (["--engine", "cuda-graph"], "not on a CUDA device"),
        (["--num-samples", "0"], "--num-samples is 0"),
    ],
)
def test_wrong_input_is_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture, arguments: list[str], message: str
) -> None:
    assert run(folder, tmp_path / "out", *arguments) == 2
    error = capsys.readouterr().err
    assert message in error.splitlines()[-1]
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_a_prefix_as_long_as_the_clip_is_refused(
    folder: Path, tmp_path: Path, prefix: Path, capsys: pytest.CaptureFixture
) -> None:
    assert run(folder, tmp_path / "out", "--prefix", prefix, "--seconds", 0.02) == 2
    expected = "the prefix has 200 samples, the clip 160: ask for more --seconds than 0.025, or give a shorter prefix"
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_prefix_that_is_no_regular_file_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to("loop")
    for name, message in {"fifo": "a FIFO, not a regular file", "loop": "Too many levels of symbolic"}.items():
        assert run(folder, tmp_path / "out", "--prefix", tmp_path / name) == 2
        assert message in capsys.readouterr().err


def save_with(folder: Path, source: Path, scale: float) -> Path:
    """Save the pipeline ``source`` with weights that are multiplied by ``scale``."""
    pipe = SashimiAutoregressivePipeline.from_pretrained(source)
    for parameter in pipe.model.parameters():
        parameter.data *= scale
    pipe.save_pretrained(folder)
    return folder


def test_weights_that_are_not_finite_are_refused(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    broken = save_with(tmp_path / "pipe", folder, math.nan)
    for arguments in ([], ["--stream", tmp_path / "x.wav"]):
        assert run(broken, tmp_path / "out", *arguments) == 2
        error = capsys.readouterr().err
        assert f"error: {broken}/model/diffusion_pytorch_model.safetensors: the weights " in error
        assert "are not finite (NaN or infinity)" in error
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


def test_likelihoods_that_are_not_finite_are_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    broken = save_with(tmp_path / "pipe", folder, 1e30)
    (tmp_path / "x.wav").write_bytes(b"made before")
    for arguments in ([], ["--stream", tmp_path / "x.wav"]):
        assert run(broken, tmp_path / "out", "--seconds", 0.01, *arguments) == 2
        assert f"the pipeline {broken} computes values that are not finite" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "x.wav").read_bytes() == b"made before"


def test_clips_and_likelihoods_are_written_after_each_batch(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, original, seen = tmp_path / "out", sample_autoregressive.generate, []

    def generate(*arguments):
        if out.exists() and (out / "samples.json").exists():
            written = sum(path.suffix == ".wav" for path in out.iterdir())
            clips = record(out)["samples"]
            seen.append((written, sum(clip["log_likelihood"] is not None for clip in clips), len(clips)))
        return original(*arguments)

    monkeypatch.setattr(sample_autoregressive, "generate", generate)
    assert run(folder, out, "--num-samples", 5, "--batch-size", 2, "--sort-by-likelihood", "--seconds", 0.01) == 0
    assert seen == [(2, 2, 5), (4, 4, 5)]
    assert sorted(path.name for path in out.glob("*.wav")) == [f"000{index}.wav" for index in range(5)]


def test_the_files_of_a_second_run_are_those_of_its_record(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    assert run(folder, out, "--num-samples", 3, "--seconds", 0.01) == 0
    before = (out / "samples.json").read_bytes()
    assert run(folder, out, "--num-samples", 2, "--seconds", 0.02) == 2
    assert f"error: {out} already has 3 clips: choose another --out, or --overwrite\n" in capsys.readouterr().err
    assert (out / "samples.json").read_bytes() == before
    window = ["--likelihood-window", 0.4, 0]
    assert run(folder, out, "--num-samples", 2, "--seconds", 0.02, "--overwrite", *window) == 0
    assert run(folder, out, "--num-samples", 2, "--seconds", 0.02, "--overwrite", *window) == 0
    assert sorted(path.name for path in out.iterdir()) == ["0000.wav", "0001.wav", "contact_sheet.png", "samples.json"]
    assert len(soundfile.read(out / "0000.wav")[0]) == 160


def test_a_stream_does_not_replace_an_input(
    folder: Path, tmp_path: Path, prefix: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "link.wav").symlink_to(prefix)
    weights = folder / "model" / "diffusion_pytorch_model.safetensors"
    for target in (prefix, tmp_path / "link.wav", weights):
        before = target.read_bytes()
        assert run(folder, tmp_path / "out", "--stream", target, "--prefix", prefix) == 2
        assert "is also the input" in capsys.readouterr().err
        assert target.read_bytes() == before


def test_overwriting_removes_no_prefix(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "out"
    assert run(folder, out, "--num-samples", 2, "--seconds", 0.01) == 0
    before = (out / "0001.wav").read_bytes()
    (tmp_path / "link").symlink_to(out)
    again = ["--num-samples", 1, "--seconds", 0.02, "--overwrite"]
    assert run(folder, tmp_path / "link", *again, "--prefix", out / "0001.wav") == 2
    assert "0001.wav is in the folder of --out" in capsys.readouterr().err
    (tmp_path / "prefix.wav").symlink_to(out / "0001.wav")
    assert run(folder, out, *again, "--prefix", tmp_path / "prefix.wav") == 2
    assert "prefix.wav is in the folder of --out" in capsys.readouterr().err
    assert (out / "0001.wav").read_bytes() == before


def test_a_broken_link_in_the_place_of_the_folder(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "out").symlink_to("nowhere")
    assert run(folder, tmp_path / "out", "--num-samples", 1, "--seconds", 0.01) == 2
    assert "such as a broken link, is in its place" in capsys.readouterr().err


def test_a_stream_to_a_device_leaves_the_device(folder: Path, tmp_path: Path) -> None:
    assert run(folder, tmp_path / "out", "--stream", "/dev/null", "--seconds", 0.01) == 0
    assert Path("/dev/null").is_char_device()


def test_standard_output_is_only_audio(folder: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture) -> None:
    assert run(folder, tmp_path / "out", "--stream", tmp_path / "x.wav", "--seconds", 0.01) == 0
    assert b"0.0 s of audio -> " in capfdbinary.readouterr().out
    for target in ("-", "/dev/stdout"):
        assert run(folder, tmp_path / "out", "--stream", target, "--seconds", 0.01) == 0
        written = capfdbinary.readouterr()
        assert written.out == (tmp_path / "x.wav").read_bytes()
        assert b"0.0 s of audio -> /dev/stdout" in written.err


def test_the_folder_inside_of_a_run_is_suggested(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "pipeline").symlink_to(folder)
    assert run(tmp_path, tmp_path / "out") == 2
    expected = f"error: {tmp_path} is not a pipeline, but {tmp_path / 'pipeline'} is one: name that folder\n"
    assert capsys.readouterr().err == expected


def test_a_diffusion_pipeline_refuses_a_prefix(tmp_path: Path, prefix: Path, capsys: pytest.CaptureFixture) -> None:
    assert sample.main(["--prefix", str(prefix), "--out", str(tmp_path / "out")]) == 2
    assert "--prefix does not apply: sashimi-digits is a diffusion pipeline; leave it out" in capsys.readouterr().err
