"""Tests that every file of the audio zoo is decoded right, used with a warning, or refused with a reason."""

import re
from pathlib import Path

import numpy as np
import pytest

from sashimi_diffusion.data import audio, decoding
from sashimi_diffusion.data.audio import AudioFileError, read_audio
from sashimi_diffusion.data.audio_folder import AudioFolder
from sashimi_diffusion.data.levels import level_warning
from tests.faults import audio_zoo_damaged as damaged
from tests.faults import audio_zoo_sound as sound
from tests.faults.audio_specimens import MAX_SAMPLES, RATE, Decoded, Refused, Specimen, of, without_tag

FAMILIES = (
    sound.sound,
    sound.coded,
    sound.misnamed,
    sound.streamed,
    sound.surrounded,
    sound.odd,
    damaged.cut,
    damaged.lying,
    damaged.levels,
    damaged.no_audio,
    damaged.long,
    damaged.flipped_bits,
    damaged.damaged_ogg,
)
ZOO = [specimen for family in FAMILIES for specimen in family()]
_ONLY_RESAMPLED = ("impossible rate", "too long when resampled")


@pytest.fixture(autouse=True)
def low_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lower the limit of the length, so that files above it are small."""
    for module in (audio, decoding):
        monkeypatch.setattr(module, "MAX_SAMPLES", MAX_SAMPLES)


def test_the_zoo_is_large() -> None:
    assert len({specimen.name for specimen in ZOO}) == len(ZOO) >= 150
    assert len({specimen.kind for specimen in ZOO}) >= 40


@pytest.mark.parametrize("specimen", ZOO, ids=lambda specimen: specimen.name)
def test_zoo(tmp_path: Path, specimen: Specimen) -> None:
    path = tmp_path / specimen.name
    path.write_bytes(specimen.content())
    rate = RATE if specimen.kind in _ONLY_RESAMPLED else None
    if isinstance(specimen.outcome, Refused):
        with pytest.raises(AudioFileError) as caught:
            read_audio(path, rate)
        _check_reason(caught.value, specimen.name)
        assert caught.value.reason.startswith(specimen.outcome.reason)
        return
    try:
        samples = read_audio(path, rate)
    except AudioFileError as error:
        _check_reason(error, specimen.name)
        if isinstance(specimen.outcome, Decoded):
            raise
        return
    assert samples.dtype == np.float32
    assert np.isfinite(samples).all()
    if isinstance(specimen.outcome, Decoded):
        _check(samples, specimen.outcome)


def test_a_data_set_skips_the_bad_files_of_the_zoo_and_names_each(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("SASHIMI_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "zoo"
    root.mkdir()
    chosen = [specimen for specimen in ZOO if specimen.kind not in _ONLY_RESAMPLED][::2]
    for specimen in chosen:
        (root / specimen.name).write_bytes(specimen.content())
    with pytest.warns(UserWarning, match="all are listed in") as warned:
        dataset = AudioFolder(root, "all", RATE, 1000, skip_bad_files=True)
    used = {file.name for file in dataset.files}
    message = next(str(one.message) for one in warned if "cannot be used" in str(one.message))
    listed = re.search("all are listed in (.*);", message)
    assert listed is not None
    bad = {line.partition(": ")[0] for line in Path(listed[1]).read_text().splitlines()}
    assert used | bad == {specimen.name for specimen in chosen}
    assert {specimen.name for specimen in chosen if isinstance(specimen.outcome, Refused)} <= bad
    assert {specimen.name for specimen in chosen if isinstance(specimen.outcome, Decoded)} <= used
    assert all(np.isfinite(dataset[index]["waveform"]).all() for index in range(0, len(dataset), 50))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="files are opened by their path without /proc")
@pytest.mark.parametrize("format", ["WAV", "FLAC", "OGG", "MP3"])
def test_files_that_macos_writes_beside_audio_change_nothing(tmp_path: Path, format: str) -> None:
    path = tmp_path / f"a.{format.lower()}"
    path.write_bytes(of(format))
    expected = read_audio(path)
    for beside in (b"", bytes.fromhex("0005160700020000") + b"Mac OS X".ljust(216)):
        (tmp_path / f"._{path.name}").write_bytes(beside)
        assert np.array_equal(read_audio(path), expected)


def test_an_mp3_without_tag_in_a_folder_with_an_empty_resource_fork(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)  # libsndfile looks there for the forks of what is no file
    path = tmp_path / "a.mp3"
    path.write_bytes(without_tag(of("MP3")))
    read_audio(path)
    (tmp_path / "._").touch()
    with pytest.raises(AudioFileError, match="its decoder cannot begin"):  # not a division by zero
        read_audio(path)


def test_an_ogg_file_without_a_page_is_refused_where_only_its_beginning_is_read(tmp_path: Path) -> None:
    for specimen in damaged.damaged_ogg():
        (tmp_path / specimen.name).write_bytes(specimen.content())
        with pytest.raises(AudioFileError, match="damaged: page "):
            read_audio(tmp_path / specimen.name, max_seconds=1)


def _check_reason(error: AudioFileError, name: str) -> None:
    assert str(error).endswith(f"{name}: {error.reason}")
    assert "\n" not in str(error)


def _check(samples: np.ndarray, expected: Decoded) -> None:
    length = len(expected.samples)
    assert length <= len(samples) <= length + expected.extra
    difference = np.sqrt(np.mean((samples[:length] - expected.samples) ** 2))
    assert difference <= expected.error * np.sqrt(np.mean(expected.samples**2))
    warning = level_warning(samples)
    if expected.warning is None:
        assert warning is None
    else:
        assert warning is not None
        assert warning.startswith(expected.warning)
