"""Tests of reading, validating, resampling and writing audio files."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from sashimi_diffusion.data.audio import AudioFileError, read_audio, resample, write_audio
from sashimi_diffusion.errors import UserError


@pytest.mark.parametrize("ending", [".wav", ".flac", ".WAV"])
def test_lossless_formats_are_read_exactly(tmp_path: Path, record, ending: str):
    noise = record(tmp_path / f"noise{ending}", 500)
    samples = read_audio(tmp_path / f"noise{ending}")
    assert samples.dtype == np.float32
    np.testing.assert_array_equal(samples, noise)


@pytest.mark.parametrize("ending", [".ogg", ".mp3"])
def test_lossy_formats_are_read(tmp_path: Path, ending: str):
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    soundfile.write(tmp_path / f"tone{ending}", tone, 16000)
    samples = read_audio(tmp_path / f"tone{ending}")
    assert abs(np.sqrt(np.mean(samples**2)) - 0.5 / np.sqrt(2)) < 0.02


def test_channels_are_averaged(tmp_path: Path, record):
    stereo = record(tmp_path / "stereo.wav", 300, channels=2)
    samples = read_audio(tmp_path / "stereo.wav")
    assert samples.shape == (300,)
    np.testing.assert_allclose(samples, stereo.mean(axis=1), atol=1e-7)


def test_written_audio_is_read_back_exactly(tmp_path: Path):
    pcm = np.arange(-(2**15), 2**15, 7)
    assert write_audio(tmp_path / "ramp.wav", pcm / 2**15, 8000) == 0
    np.testing.assert_array_equal(read_audio(tmp_path / "ramp.wav") * 2**15, pcm)
    info = soundfile.info(tmp_path / "ramp.wav")
    assert (info.subtype, info.samplerate, info.channels) == ("PCM_16", 8000, 1)


def test_values_out_of_range_are_clamped_and_counted(tmp_path: Path):
    waveform = torch.tensor([0.0, 1.5, -3.0, 1.0, -1.0, 0.25, 0.5, 0.75])
    assert write_audio(tmp_path / "loud.wav", waveform, 16000) == 0.25
    samples = read_audio(tmp_path / "loud.wav")
    assert samples.max() == np.float32(1 - 2**-15)
    assert samples.min() == -1.0
    assert samples[1] > 0 > samples[2]  # clamped, not wrapped around


def test_channels_are_written(tmp_path: Path):
    write_audio(tmp_path / "stereo.wav", torch.zeros(2, 50, dtype=torch.bfloat16), 16000)
    assert soundfile.info(tmp_path / "stereo.wav").channels == 2


@pytest.mark.parametrize(
    ("waveform", "complaint"),
    [(np.array([0.0, np.nan]), "non-finite"), (np.zeros(0), "shape"), (np.zeros((1, 1, 4)), "shape")],
)
def test_invalid_waveforms_are_refused(tmp_path: Path, waveform: np.ndarray, complaint: str):
    with pytest.raises(UserError, match=complaint):
        write_audio(tmp_path / "out.wav", waveform, 16000)
    assert not (tmp_path / "out.wav").exists()


def test_a_file_that_cannot_be_written(tmp_path: Path):
    with pytest.raises(UserError, match=r"cannot write .*No such file or directory"):
        write_audio(tmp_path / "nowhere" / "out.wav", np.zeros(4), 16000)


def make_zero_bytes(path: Path):
    path.touch()


def make_no_samples(path: Path):
    soundfile.write(path, np.zeros(0), 16000)


def make_text(path: Path):
    path.write_text("this is not audio")


def make_nan(path: Path):
    soundfile.write(path, np.array([0.0, np.nan, 0.5]), 16000, subtype="FLOAT")


def make_infinite(path: Path):
    soundfile.write(path, np.array([0.0, np.inf, 0.5]), 16000, subtype="FLOAT")


def make_wrong_rate(path: Path):
    soundfile.write(path, np.zeros(10), 8000)


def make_broken_link(path: Path):
    path.symlink_to(path.with_name("gone.wav"))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (make_zero_bytes, "empty (0 bytes)"),
        (make_no_samples, "empty (no samples)"),
        (make_text, "not audio that soundfile can read (Format not recognised)"),
        (make_nan, "non-finite samples (NaN or infinity)"),
        (make_infinite, "non-finite samples (NaN or infinity)"),
        (make_wrong_rate, "wrong sample rate (8000 Hz instead of 16000 Hz)"),
        (make_broken_link, "unreadable (No such file or directory)"),
    ],
)
def test_errors_state_why_a_file_cannot_be_used(tmp_path: Path, make, reason: str):
    make(tmp_path / "bad.wav")
    with pytest.raises(AudioFileError, match=r"bad\.wav") as caught:
        read_audio(tmp_path / "bad.wav", source_rate=16000)
    assert caught.value.reason == reason


def test_a_truncated_flac_is_cut_short(tmp_path: Path, record):
    record(tmp_path / "cut.flac", 20000)
    content = (tmp_path / "cut.flac").read_bytes()
    (tmp_path / "cut.flac").write_bytes(content[: len(content) // 2])
    with pytest.raises(AudioFileError, match="cut short: header says 20000 samples, file has 8192"):
        read_audio(tmp_path / "cut.flac")


@pytest.mark.usefixtures("needs_torchaudio")
@pytest.mark.parametrize(("from_rate", "to_rate"), [(8000, 16000), (44100, 16000), (22050, 16000), (16000, 8000)])
def test_resampling_keeps_a_tone(from_rate: int, to_rate: int):
    def tone(rate: int) -> np.ndarray:
        return np.sin(2 * np.pi * 1000 * np.arange(rate) / rate).astype(np.float32)

    resampled = resample(tone(from_rate), from_rate, to_rate)
    assert resampled.shape == (to_rate,)
    inside = slice(to_rate // 10, -to_rate // 10)
    np.testing.assert_allclose(resampled[inside], tone(to_rate)[inside], atol=2e-4)


@pytest.mark.usefixtures("needs_torchaudio")
def test_resampling_removes_frequencies_above_the_new_nyquist_frequency():
    tone = np.sin(2 * np.pi * 5000 * np.arange(16000) / 16000).astype(np.float32)
    assert np.abs(resample(tone, 16000, 8000)[400:-400]).max() < 1e-4


def test_audio_at_the_target_rate_does_not_need_torchaudio(without_torchaudio, tmp_path: Path, record):
    noise = record(tmp_path / "noise.wav", 50)
    np.testing.assert_array_equal(read_audio(tmp_path / "noise.wav", sample_rate=16000), noise)


def test_resampling_without_torchaudio_explains_the_error(without_torchaudio, tmp_path: Path, record):
    record(tmp_path / "noise.wav", 50)
    with pytest.raises(UserError) as caught:
        read_audio(tmp_path / "noise.wav", sample_rate=8000)
    message = str(caught.value)
    assert "resampling from 16000 Hz to 8000 Hz needs torchaudio" in message
    assert torch.__version__ in message
    assert "_torchaudio.abi3.so" in message
    assert "give recordings that are at 8000 Hz already" in message
    assert "\n" not in message
    assert not isinstance(caught.value, AudioFileError)  # the error is not about the file
