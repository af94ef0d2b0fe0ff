"""Tests of excerpts of long recordings: where they start, how they are read, and what is refused."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile

from sashimi_diffusion.data import decoding
from sashimi_diffusion.data.decoding import AudioFileError, decode_audio, decode_blocks
from sashimi_diffusion.errors import UserError
from sashimi_evaluation import excerpts as excerpts_module
from sashimi_evaluation import feature_extraction
from sashimi_evaluation.clips import open_clips
from sashimi_evaluation.excerpts import Windows, excerpts, read_excerpt
from sashimi_evaluation.feature_extraction import ClipNetwork, extract_clip_features
from sashimi_evaluation.preparation import Preparation

RATE = 4000
PLAIN = Preparation()


def write_ramp(path: Path, length: int, rate: int = RATE) -> np.ndarray:
    """Write a file in which each sample has its own value, and return the samples."""
    samples = (np.arange(1, length + 1) / 2**20).astype(np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, subtype="FLOAT")
    return samples


@pytest.mark.parametrize(
    ("length", "seconds", "hop", "starts"),
    [
        (10_000, 1.0, None, [0, 4000]),  # the rest of half a second is left out
        (12_000, 1.0, None, [0, 4000, 8000]),
        (11_999, 1.0, None, [0, 4000]),
        (10_000, 1.0, 0.5, [0, 2000, 4000, 6000]),
        (10_000, 0.5, 1.0, [0, 4000, 8000]),
        (10_000, 0.1, 2.0, [0, 8000]),  # the hop is longer than a block of the decoder
        (1_000, 1.0, 0.5, [0]),  # shorter than the window: one excerpt
        (30_000, 5.0, 1.0, [0, 4000, 8000]),  # the window is longer than a block
        (4_000, 0.3, 0.3, [0, 1200, 2400]),
    ],
)
def test_excerpts_start_at_multiples_of_the_hop(tmp_path, length, seconds, hop, starts):
    samples = write_ramp(tmp_path / "a.wav", length)
    found = list(excerpts(tmp_path / "a.wav", Windows(seconds, hop), PLAIN))
    assert [round(excerpt.start * RATE) for excerpt in found] == starts
    for excerpt in found:
        first = round(excerpt.start * RATE)
        np.testing.assert_array_equal(excerpt.samples, samples[first : first + round(seconds * RATE)])
        assert excerpt.peak == excerpt.samples[-1]
        again, rate = read_excerpt(tmp_path / "a.wav", excerpt.start, seconds)
        np.testing.assert_array_equal(again, excerpt.samples)
        assert rate == excerpt.sample_rate == RATE


def test_the_level_of_the_preparation_is_that_of_the_whole_recording(tmp_path):
    random = np.random.default_rng(0)
    samples = np.concatenate([0.01 * random.standard_normal(30 * RATE), 0.2 * random.standard_normal(15 * RATE)])
    soundfile.write(tmp_path / "a.wav", samples, RATE, subtype="FLOAT")
    found = list(excerpts(tmp_path / "a.wav", Windows(1.0), Preparation(rate=2000, rms=0.1)))
    assert len(found) == 45
    assert {excerpt.sample_rate for excerpt in found} == {2000}
    assert {len(excerpt.samples) for excerpt in found} == {2000}
    power = np.mean([np.square(excerpt.samples).mean() for excerpt in found])
    assert np.sqrt(power) == pytest.approx(0.1, rel=0.02)
    assert np.abs(found[0].samples).max() < 0.1 * np.abs(found[-1].samples).max()


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.mp3"])
def test_blocks_are_the_samples_of_the_file(tmp_path, name):
    random = np.random.default_rng(0)
    soundfile.write(tmp_path / name, 0.1 * random.standard_normal((20_000, 2)), 16000)
    whole = decode_audio(tmp_path / name)
    blocks = list(decode_blocks(tmp_path / name))
    np.testing.assert_array_equal(np.concatenate([block.samples for block in blocks]), whole.samples)
    assert {(block.sample_rate, block.channels) for block in blocks} == {(16000, 2)}
    if name != "a.mp3":  # its decoder begins a block earlier than the sample
        rest = np.concatenate([block.samples for block in decode_blocks(tmp_path / name, 5000)])
        np.testing.assert_allclose(rest, whole.samples[5000:], atol=1e-6)
    assert list(decode_blocks(tmp_path / name, 10**6)) == []


def test_a_long_file_does_not_need_its_size_in_memory(tmp_path):
    with soundfile.SoundFile(tmp_path / "long.flac", "w", 16000, 1, "PCM_16") as file:
        for _ in range(5):
            file.write(np.zeros(16000 * 60))  # five minutes: 19 MB as float32
    tracemalloc.start()
    count = sum(1 for _ in excerpts(tmp_path / "long.flac", Windows(2.0, 10.0), PLAIN))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 30
    assert peak < 2e6


def test_damage_in_a_later_part_is_found(tmp_path):
    random = np.random.default_rng(0)
    soundfile.write(tmp_path / "a.flac", 0.1 * random.standard_normal(60 * 8000), 8000)
    content = bytearray((tmp_path / "a.flac").read_bytes())
    content[len(content) // 2] ^= 255
    (tmp_path / "a.flac").write_bytes(content)
    with pytest.raises(AudioFileError, match="cut short"):
        list(excerpts(tmp_path / "a.flac", Windows(1.0), PLAIN))
    write_ramp(tmp_path / "b.wav", 40_000)
    (tmp_path / "b.wav").write_bytes((tmp_path / "b.wav").read_bytes()[:-1000])
    with pytest.raises(AudioFileError, match="cut short"):
        list(decode_blocks(tmp_path / "b.wav"))
    for value, words in ((np.nan, "non-finite"), (1e6, "samples up to 1e"), (1e-12, "no sample above")):
        soundfile.write(tmp_path / "c.wav", np.full(9000, value), RATE, subtype="FLOAT")
        with pytest.raises(AudioFileError, match=words):
            list(decode_blocks(tmp_path / "c.wav"))
    soundfile.write(tmp_path / "d.wav", np.zeros(0), RATE)
    with pytest.raises(AudioFileError, match="empty"):
        list(decode_blocks(tmp_path / "d.wav"))


@pytest.mark.parametrize(
    ("seconds", "hop", "message"),
    [
        (0, None, "--window is 0, expected a number of seconds from 0.1 to 60"),
        (-1, None, "--window is -1,"),
        (61, None, "--window is 61,"),
        (float("nan"), None, "--window is nan,"),
        (1, 0, "--hop is 0, expected a number of seconds from 0.01 to 3600"),
        (1, float("inf"), "--hop is inf,"),
    ],
)
def test_impossible_windows_are_refused(seconds, hop, message):
    with pytest.raises(UserError, match=message):
        Windows(seconds, hop)


class Sums:
    """Sum the samples of each excerpt and count the excerpts."""

    def __init__(self):
        self.rows = 0

    def __call__(self, audio):
        self.rows += len(audio)
        return {"sum": audio.sum(axis=1)}


@pytest.fixture
def folder(tmp_path):
    for number, length in enumerate((9_000, 12_500, 2_000)):
        write_ramp(tmp_path / "clips" / f"{number}.wav", length)
    return tmp_path / "clips"


def network(compute, seconds):
    return ClipNetwork(compute, "sums", RATE, seconds)


def test_each_excerpt_is_a_row_with_its_recording(tmp_path, folder):
    sums, clips = Sums(), open_clips(folder)
    extracted = extract_clip_features(clips, network(sums, 1.0), tmp_path / "cache", windows=Windows(1.0))
    assert [file.name for file in extracted.clips.files] == ["0.wav"] * 2 + ["1.wav"] * 3 + ["2.wav"]
    assert extracted.recordings.tolist() == [0, 0, 1, 1, 1, 2]
    assert extracted.files == 3
    assert [file.name for file in extracted.whole().files] == ["0.wav", "1.wav", "2.wav"]
    assert extracted.properties["start"].tolist() == [0, 1, 0, 1, 2, 0]
    assert extracted.properties["seconds"].tolist() == [1, 1, 1, 1, 1, 0.5]
    assert len(set(extracted.fingerprints)) == 3
    numbers = np.arange(1, 2**14) / 2**20
    np.testing.assert_allclose(extracted.outputs["sum"][3], numbers[4000:8000].sum(), rtol=1e-5)
    np.testing.assert_allclose(extracted.outputs["sum"][5], numbers[:2000].sum(), rtol=1e-5)  # padded with zeros
    chosen = extracted.select(np.asarray([4, 0]))
    assert chosen.recordings.tolist() == [1, 0]
    assert chosen.properties["start"].tolist() == [2, 0]


def test_the_cache_knows_window_and_hop(tmp_path, folder):
    sums, clips = Sums(), open_clips(folder)
    for windows, rows in ((Windows(1.0), 6), (Windows(1.0), 6), (Windows(1.0, 0.5), 15), (Windows(2.0), 18)):
        extract_clip_features(clips, network(sums, windows.seconds), tmp_path / "cache", windows=windows)
        assert sums.rows == rows, windows
    assert Windows(1.0) != Windows(1.0, 0.5)
    extract_clip_features(clips, network(sums, 1.0), tmp_path / "cache")
    assert sums.rows == 21


def test_batches_and_shards_do_not_change_excerpts(tmp_path, folder, monkeypatch):
    clips, windows = open_clips(folder), Windows(0.5, 0.25)
    whole = extract_clip_features(clips, network(Sums(), 0.5), tmp_path / "a", windows=windows)
    monkeypatch.setattr(feature_extraction, "_RECORDINGS", 1)
    monkeypatch.setattr(feature_extraction, "_BATCH_SAMPLES", 2 * round(0.5 * RATE))
    parts = extract_clip_features(clips, network(Sums(), 0.5), tmp_path / "b", windows=windows)
    np.testing.assert_array_equal(whole.outputs["sum"], parts.outputs["sum"])
    assert whole.recordings.tolist() == parts.recordings.tolist()
    assert whole.fingerprints == parts.fingerprints


def test_a_bad_recording_is_left_out_with_all_its_excerpts(tmp_path, folder):
    samples, _ = soundfile.read(folder / "1.wav", dtype="float32")
    samples[9_000] = np.nan  # in the third second
    soundfile.write(folder / "1.wav", samples, RATE, subtype="FLOAT")
    clips, windows = open_clips(folder), Windows(1.0)
    with pytest.raises(UserError, match=r"1 of 3 audio files(.|\n)*1\.wav: non-finite"):
        extract_clip_features(clips, network(Sums(), 1.0), tmp_path / "cache", windows=windows)
    with pytest.warns(UserWarning, match="going on without them"):
        extracted = extract_clip_features(clips, network(Sums(), 1.0), tmp_path / "cache", True, windows)
    assert extracted.recordings.tolist() == [0, 0, 2]


def test_too_many_excerpts_and_too_long_windows_are_refused(tmp_path, folder, monkeypatch):
    clips = open_clips(folder)
    message = r"--window 4 is longer than every recording of clips \(the longest has 3.125 s\)"
    with pytest.raises(UserError, match=message):
        extract_clip_features(clips, network(Sums(), 4.0), tmp_path / "cache", windows=Windows(4.0))
    for module in (excerpts_module, feature_extraction):
        monkeypatch.setattr(module, "MOST_EXCERPTS", 5)
    with pytest.raises(UserError, match=r"have more than 5 excerpts: choose a longer --hop"):
        extract_clip_features(clips, network(Sums(), 1.0), tmp_path / "cache", windows=Windows(1.0))
    monkeypatch.setattr(feature_extraction, "_RECORDINGS", 1)
    with pytest.raises(UserError, match=r"clips has more than 5 excerpts: choose a longer --hop"):
        extract_clip_features(clips, network(Sums(), 1.0), tmp_path / "other", windows=Windows(1.0))


def test_a_recording_longer_than_the_limit_of_whole_files_is_cut(tmp_path, monkeypatch):
    write_ramp(tmp_path / "a.wav", 20_000)
    monkeypatch.setattr(decoding, "MAX_SAMPLES", 10_000)
    with pytest.raises(AudioFileError, match="more than 10000 samples"):
        decode_audio(tmp_path / "a.wav")
    assert len(list(excerpts(tmp_path / "a.wav", Windows(1.0), PLAIN))) == 5
