"""Tests of feature extraction from clips and of its cache."""

import os
import time
from dataclasses import replace

import numpy as np
import pytest
import soundfile

from sashimi_diffusion.errors import UserError
from sashimi_evaluation import feature_extraction
from sashimi_evaluation.clips import open_clips
from sashimi_evaluation.feature_extraction import ClipNetwork, extract_clip_features
from sashimi_evaluation.preparation import Preparation

RATE = 16000


class Network:
    """Sum the samples of each clip and count the clips."""

    def __init__(self):
        self.clips = 0

    def __call__(self, audio):
        assert audio.dtype == np.float32
        assert audio.shape[1] == RATE
        self.clips += len(audio)
        return {"sum": audio.sum(axis=1), "first": audio[:, 0]}


@pytest.fixture
def network():
    return Network()


@pytest.fixture
def clip_network(network):
    return ClipNetwork(network, "network", RATE)


def write(path, samples=RATE, rate=RATE, channels=1, value=0.25):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.full((samples, channels), value), rate, subtype="FLOAT")


@pytest.fixture
def folder(tmp_path):
    for number in range(5):
        write(tmp_path / "clips" / f"{number}.wav", value=(number + 1) / 8)
    return tmp_path / "clips"


def test_the_network_receives_the_samples_of_the_file(tmp_path, folder, clip_network):
    extracted = extract_clip_features(open_clips(folder), clip_network, tmp_path / "cache")
    np.testing.assert_allclose(extracted.outputs["first"], np.arange(1, 6) / 8)
    np.testing.assert_allclose(extracted.outputs["sum"], np.arange(1, 6) / 8 * RATE, rtol=1e-5)
    assert extracted.properties["rate"].tolist() == [RATE] * 5
    np.testing.assert_allclose(extracted.properties["level"], 20 * np.log10(np.arange(1, 6) / 8), atol=1e-4)


def test_features_are_extracted_once_per_clip_and_network(tmp_path, folder, clip_network, network):
    first = extract_clip_features(open_clips(folder), clip_network, tmp_path / "cache")
    again = extract_clip_features(open_clips(folder), clip_network, tmp_path / "cache")
    assert network.clips == 5
    np.testing.assert_array_equal(first.outputs["sum"], again.outputs["sum"])
    (folder / "0.wav").rename(folder / "0-renamed.wav")  # the cache key is the content, not the name
    extract_clip_features(open_clips(folder), clip_network, tmp_path / "cache")
    assert network.clips == 5
    write(folder / "2.wav", value=0.9)
    extract_clip_features(open_clips(folder), clip_network, tmp_path / "cache")
    assert network.clips == 10
    extract_clip_features(open_clips(folder), replace(clip_network, fingerprint="another network"), tmp_path / "cache")
    assert network.clips == 15


def test_an_interrupted_run_continues_from_the_cache(tmp_path, folder, clip_network, network, monkeypatch):
    monkeypatch.setattr(feature_extraction, "_SHARD", 2)

    def interrupted(audio):
        if network.clips == 4:
            raise KeyboardInterrupt
        return network(audio)

    with pytest.raises(KeyboardInterrupt):
        extract_clip_features(open_clips(folder), replace(clip_network, compute=interrupted), tmp_path / "cache")
    extracted = extract_clip_features(open_clips(folder), clip_network, tmp_path / "cache")
    assert network.clips == 5
    np.testing.assert_allclose(extracted.outputs["first"], np.arange(1, 6) / 8)


def test_batches_do_not_change_the_result(tmp_path, folder, clip_network, monkeypatch):
    whole = extract_clip_features(open_clips(folder), clip_network, tmp_path / "a")
    monkeypatch.setattr(feature_extraction, "_SHARD", 2)
    monkeypatch.setattr(feature_extraction, "_BATCH", 1)
    parts = extract_clip_features(open_clips(folder), clip_network, tmp_path / "b")
    np.testing.assert_array_equal(whole.outputs["sum"], parts.outputs["sum"])
    assert whole.fingerprints == parts.fingerprints


@pytest.mark.parametrize("damage", [b"", b"nonsense", None])
def test_a_damaged_cache_is_rebuilt_with_a_warning(tmp_path, folder, clip_network, network, capsys, damage):
    first = extract_clip_features(open_clips(folder), clip_network, tmp_path / "cache")
    (shard,) = (tmp_path / "cache").glob("*.npz")
    content = shard.read_bytes()
    if damage is None:  # change one byte of an array
        place = content.index(first.outputs["sum"].tobytes())
        damage = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
    shard.write_bytes(damage)
    again = extract_clip_features(open_clips(folder), clip_network, tmp_path / "cache")
    assert network.clips == 10
    assert "is damaged" in capsys.readouterr().err
    np.testing.assert_array_equal(first.outputs["sum"], again.outputs["sum"])


def test_temporary_files_of_killed_processes_are_removed_later(tmp_path, folder, clip_network):
    (tmp_path / "cache").mkdir()
    abandoned, active = tmp_path / "cache" / ".a.npz.1.tmp", tmp_path / "cache" / ".b.npz.2.tmp"
    for path in (abandoned, active):
        path.touch()
    os.utime(abandoned, (time.time() - 48 * 3600,) * 2)
    extract_clip_features(open_clips(folder), clip_network, tmp_path / "cache")
    assert not abandoned.exists()
    assert active.exists()


def test_other_rates_channels_and_lengths(tmp_path, clip_network):
    folder = tmp_path / "clips"
    write(folder / "long.wav", samples=3 * RATE)
    write(folder / "short.wav", samples=400)
    write(folder / "slow.wav", samples=8000, rate=8000)
    write(folder / "stereo.wav", channels=2)
    extracted = extract_clip_features(open_clips(folder), clip_network, tmp_path / "cache")
    np.testing.assert_allclose(extracted.outputs["sum"], [4000, 100, 4000, 4000], rtol=2e-3)
    assert extracted.properties["seconds"].tolist() == [3, 400 / RATE, 1, 1]
    assert extracted.properties["rate"].tolist() == [RATE, RATE, 8000, RATE]
    assert extracted.properties["channels"].tolist() == [1, 1, 1, 2]


def test_the_properties_of_notes_are_computed_only_if_asked_for(tmp_path, folder, clip_network, monkeypatch):
    computed = []
    original = feature_extraction.music_properties
    monkeypatch.setattr(feature_extraction, "music_properties", lambda *own: computed.append(1) or original(*own))
    for music, expected in ((False, 0), (True, 5), (False, 5), (True, 5)):  # cached apart
        extracted = extract_clip_features(open_clips(folder), clip_network, tmp_path / "cache", music=music)
        assert ("onsets_per_second" in extracted.properties) == music
        assert len(computed) == expected


def test_clips_are_prepared_before_the_network_and_the_properties(tmp_path, folder, clip_network, network):
    clips = replace(open_clips(folder), preparation=Preparation(RATE, RATE // 2, 0.1))
    extracted = extract_clip_features(clips, clip_network, tmp_path / "cache")
    np.testing.assert_allclose(extracted.outputs["sum"], [0.1 * RATE / 2] * 5, rtol=1e-5)
    np.testing.assert_allclose(extracted.properties["level"], [-20.0] * 5, atol=1e-4)
    assert extracted.properties["seconds"].tolist() == [0.5] * 5
    assert extracted.properties["peak"].tolist() == [(number + 1) / 8 for number in range(5)]  # of the file
    again = extract_clip_features(open_clips(folder), clip_network, tmp_path / "cache")
    assert again.properties["seconds"].tolist() == [1] * 5  # cached apart
    assert network.clips == 10


def test_the_voice_and_the_spectrum_of_each_clip_are_cached(tmp_path, folder, clip_network, network):
    time = np.arange(RATE) / RATE
    tone = sum(np.sin(2 * np.pi * 150 * number * time) for number in range(1, 20))
    soundfile.write(folder / "2.wav", 0.05 * tone, RATE)
    for _ in range(2):
        extracted = extract_clip_features(open_clips(folder), clip_network, tmp_path / "cache")
        assert extracted.properties["periodicity"].shape == (5, 5)
        assert extracted.properties["periodicity"][2, 0] > 0.99
        assert extracted.properties["voiced_share"][2] == 1
        assert extracted.properties["spectrum"].shape == (5, 513)
        assert extracted.properties["word_seconds"][2] == pytest.approx(1)
    assert network.clips == 5


def test_bad_files_are_named_or_left_out(tmp_path, folder, clip_network):
    write(folder / "1.wav", value=np.nan)
    (folder / "3.wav").write_bytes(b"not audio")
    with pytest.raises(UserError, match=r"2 of 5 audio files(.|\n)*1\.wav: non-finite(.|\n)*3\.wav: not audio"):
        extract_clip_features(open_clips(folder), clip_network, tmp_path / "cache")
    with pytest.warns(UserWarning, match="going on without them"):
        extracted = extract_clip_features(open_clips(folder), clip_network, tmp_path / "cache", skip_bad_files=True)
    assert [file.name for file in extracted.clips.files] == ["0.wav", "2.wav", "4.wav"]
    np.testing.assert_allclose(extracted.outputs["first"], [1 / 8, 3 / 8, 5 / 8])
    assert len(extracted.fingerprints) == 3


def test_a_cache_that_cannot_be_written_is_named(tmp_path, folder, clip_network):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write the cache"):
        extract_clip_features(open_clips(folder), clip_network, tmp_path / "file" / "cache")


def test_selected_clips_keep_their_features_and_fingerprints(tmp_path, folder, clip_network):
    extracted = extract_clip_features(open_clips(folder), clip_network, tmp_path / "cache")
    chosen = extracted.select(np.asarray([3, 1]))
    assert [file.name for file in chosen.clips.files] == ["3.wav", "1.wav"]
    np.testing.assert_allclose(chosen.outputs["first"], [4 / 8, 2 / 8])
    assert chosen.fingerprints == (extracted.fingerprints[3], extracted.fingerprints[1])
