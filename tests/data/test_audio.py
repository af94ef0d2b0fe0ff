"""Tests of reading, validating, resampling and writing audio files."""

import os
import socket
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from sashimi_diffusion.data.audio import AudioFileError, read_audio, resample, write_audio
from sashimi_diffusion.data.decoding import decode_audio, decode_content
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


@pytest.mark.parametrize("ending", ["wav", "flac", "ogg", "mp3"])
@pytest.mark.parametrize(("rate", "channels"), [(16000, 1), (44100, 2)])
def test_decoding_in_blocks_gives_what_soundfile_gives(tmp_path: Path, ending: str, rate: int, channels: int):
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (30001, channels))
    soundfile.write(tmp_path / f"noise.{ending}", noise, rate)
    whole, _ = soundfile.read(tmp_path / f"noise.{ending}", dtype="float32", always_2d=True)
    samples, sample_rate, found = decode_audio(tmp_path / f"noise.{ending}")
    np.testing.assert_array_equal(samples, whole.mean(axis=1))
    assert (sample_rate, found) == (rate, channels)


def make_fifo(path: Path):
    os.mkfifo(path)


def make_socket(path: Path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def make_endless_link(path: Path):
    path.symlink_to(path)


@pytest.mark.skipif(os.name != "posix", reason="the special files of POSIX systems")
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (make_fifo, "a FIFO, not a regular file"),
        (make_socket, "a socket, not a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "a device, not a regular file"),
        (Path.mkdir, "a folder, not a regular file"),
        (make_endless_link, "unreadable (Too many levels of symbolic links)"),
    ],
)
def test_only_regular_files_are_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, make, reason: str):
    monkeypatch.chdir(tmp_path)  # the path of a socket is short
    make(Path("x.wav"))
    with pytest.raises(AudioFileError) as caught:
        read_audio("x.wav")
    assert caught.value.reason == reason


@pytest.mark.parametrize("name", ["a\0.wav", f"{'long' * 100}.wav"])
def test_impossible_paths(name: str):
    with pytest.raises(AudioFileError, match=r"unreadable|not audio that soundfile can read \(embedded null"):
        read_audio(name)


def test_names_that_are_not_utf8_or_have_escape_bytes(tmp_path: Path, record):
    noise = record(tmp_path / "noise.wav")
    for raw in (b"caf\xe9.wav", b"\x1b[31mred.wav"):
        path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + raw))
        path.write_bytes((tmp_path / "noise.wav").read_bytes())
        np.testing.assert_array_equal(read_audio(path), noise)
        with pytest.raises(AudioFileError, match="wrong sample rate") as caught:
            read_audio(path, source_rate=8000)
        assert str(caught.value).isprintable()


def allocated(function) -> int:
    """Return the most memory in bytes that NumPy and Python had at one time while a function ran."""
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_little_more_is_decoded_than_is_needed(tmp_path: Path):
    minutes = np.zeros(16000 * 60 * 3)
    minutes[:16000] = 0.5
    soundfile.write(tmp_path / "long.flac", minutes, 16000)  # 8 kB, 11 MB when decoded
    assert allocated(lambda: decode_audio(tmp_path / "long.flac", max_seconds=1.0)) < 1_000_000
    samples = decode_audio(tmp_path / "long.flac", max_seconds=1.0).samples
    assert len(samples) == 16000
    assert (samples == 0.5).all()


@pytest.mark.parametrize("rate", [16000, 22051])
@pytest.mark.usefixtures("needs_torchaudio")
def test_the_beginning_is_the_same_as_that_of_the_whole(tmp_path: Path, rate: int):
    soundfile.write(tmp_path / "noise.wav", np.random.default_rng(0).uniform(-0.5, 0.5, 6 * rate), rate)
    for to_rate in (None, 8000, 16000):
        beginning = read_audio(tmp_path / "noise.wav", to_rate, max_seconds=0.7)
        assert len(beginning) == int(np.ceil(0.7 * (to_rate or rate)))
        whole = read_audio(tmp_path / "noise.wav", to_rate)[: len(beginning)]
        np.testing.assert_allclose(beginning, whole, atol=1e-6)


def test_a_file_is_refused_if_it_exceeds_the_memory(tmp_path: Path, record, monkeypatch: pytest.MonkeyPatch):
    def fail(*arguments, **keywords):
        raise MemoryError

    record(tmp_path / "noise.wav")
    monkeypatch.setattr(soundfile.SoundFile, "read", fail)
    with pytest.raises(AudioFileError, match="too long for the memory"):
        read_audio(tmp_path / "noise.wav")


@pytest.mark.parametrize("error", [ValueError, RuntimeError, OverflowError, TypeError])
def test_every_exception_of_the_decoder_names_the_file(tmp_path: Path, record, monkeypatch, error: type[Exception]):
    def fail(*arguments, **keywords):
        raise error("array is too big")

    record(tmp_path / "noise.wav")
    monkeypatch.setattr(soundfile.SoundFile, "read", fail)
    with pytest.raises(AudioFileError, match=r"noise\.wav: not audio that soundfile can read \(array is too big\)"):
        read_audio(tmp_path / "noise.wav")


UNUSUAL_RATES = [11127, 22051, 44101, 47999, 999_983]


def tone(frequency: float, rate: int, length: int) -> np.ndarray:
    return np.sin(2 * np.pi * frequency * np.arange(length) / rate).astype(np.float32)


@pytest.mark.usefixtures("needs_torchaudio")
@pytest.mark.parametrize("from_rate", [8000, 44100, 22050, 48000, *UNUSUAL_RATES])
@pytest.mark.parametrize("to_rate", [16000, 11025])
def test_resampling_keeps_a_tone(from_rate: int, to_rate: int):
    length = from_rate // 4
    for part in (0.1, 0.5, 0.85):
        frequency = part * min(from_rate, to_rate) / 2
        resampled = resample(tone(frequency, from_rate, length), from_rate, to_rate)
        assert resampled.shape == (-(-length * to_rate // from_rate),)
        inside = slice(len(resampled) // 8, -len(resampled) // 8)
        expected = tone(frequency, to_rate, len(resampled))
        np.testing.assert_allclose(resampled[inside], expected[inside], atol=1e-3)


@pytest.mark.usefixtures("needs_torchaudio")
@pytest.mark.parametrize("from_rate", [16000, 44100, 22051, 44101, 47999, 999_983])
def test_resampling_removes_frequencies_above_the_new_nyquist_frequency(from_rate: int):
    for frequency in (4040, 5000, 7000):
        resampled = resample(tone(frequency, from_rate, from_rate // 2), from_rate, 8000)
        assert np.abs(resampled[400:-400]).max() < 10 ** (-95 / 20)


def test_unusual_rates_keep_the_shape():
    rows = np.stack([tone(440, 22051, 3000), tone(880, 22051, 3000)])[None]
    resampled = resample(rows, 22051, 16000)
    assert resampled.shape == (1, 2, -(-3000 * 16000 // 22051))
    np.testing.assert_array_equal(resampled[0, 1], resample(rows[0, 1], 22051, 16000))


@pytest.mark.skipif(os.name != "posix", reason="the peak memory of a process is read with POSIX calls")
@pytest.mark.usefixtures("needs_torchaudio")
def test_resampling_needs_little_memory():
    """One second at these rates needed up to 64 GB; a forked process measures its own peak."""
    resample(np.zeros(10, dtype=np.float32), 8000, 16000)  # imports torchaudio
    process = os.fork()
    if process == 0:
        megabytes = 255
        try:
            megabytes = min(_memory_of_resampling([*UNUSUAL_RATES, 44100, 1_000_000], 16000), 254)
        finally:
            os._exit(megabytes)
    _, status = os.waitpid(process, 0)
    assert os.WIFEXITED(status)
    assert os.WEXITSTATUS(status) < 200, "megabytes"


def _memory_of_resampling(rates: list[int], to_rate: int) -> int:
    """Return how much the peak memory of this process grows, in MB, when one second at each rate is resampled."""
    import resource

    torch.set_num_threads(1)  # threads of OpenMP do not survive a fork
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for rate in rates:
        resample(np.zeros(rate, dtype=np.float32), rate, to_rate)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024


@pytest.mark.parametrize(("from_rate", "to_rate"), [(99, 16000), (16000, 99), (1_000_001, 16000), (16000, 2**31)])
def test_impossible_rates_are_refused(from_rate: int, to_rate: int):
    with pytest.raises(UserError, match=f"cannot resample from {from_rate} Hz to {to_rate} Hz: .* expected 100 Hz to"):
        resample(np.zeros(100, dtype=np.float32), from_rate, to_rate)


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


@pytest.mark.parametrize("rate", [16000, 8000, 11127])
@pytest.mark.parametrize("max_seconds", [None, 0.1])
def test_channels_are_read_as_if_each_were_a_file(tmp_path: Path, record, needs_torchaudio, rate, max_seconds):
    noise = record(tmp_path / "stereo.wav", 4000, channels=2)
    both = read_audio(tmp_path / "stereo.wav", rate, max_seconds=max_seconds, channels=2)
    assert both.shape[0] == 2
    for channel, samples in zip(noise.T, both, strict=True):
        soundfile.write(tmp_path / "mono.wav", channel, 16000)
        expected = read_audio(tmp_path / "mono.wav", rate, max_seconds=max_seconds)
        np.testing.assert_allclose(samples, expected, atol=1e-6)  # both at once are added in another order


def test_another_number_of_channels_is_refused(tmp_path: Path, record):
    record(tmp_path / "mono.wav")
    record(tmp_path / "three.wav", channels=3)
    with pytest.raises(AudioFileError, match="1 channel instead of 2"):
        read_audio(tmp_path / "mono.wav", channels=2)
    with pytest.raises(AudioFileError, match="3 channels instead of 2"):
        read_audio(tmp_path / "three.wav", channels=2)


def test_content_is_decoded_as_the_file_is(tmp_path: Path, record):
    for ending, channels in ((".wav", 2), (".flac", 1), (".ogg", 2), (".mp3", 1)):
        record(tmp_path / f"noise{ending}", 3000, channels=channels)
        content = (tmp_path / f"noise{ending}").read_bytes()
        for own, other in zip(decode_content(content, "x"), decode_audio(tmp_path / f"noise{ending}"), strict=True):
            np.testing.assert_array_equal(own, other)
    for damaged, reason in ((b"", "empty"), (b"no audio", "not audio that soundfile can read"), (content[:50], "")):
        with pytest.raises(AudioFileError, match=f"cannot use shard/a.wav: .*{reason}"):
            decode_content(damaged, "shard/a.wav")
