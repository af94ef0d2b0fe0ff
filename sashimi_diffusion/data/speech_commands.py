"""Google Speech Commands: one word per recording, by thousands of speakers.

SC09, its ten digits, is the data set of many papers on audio generation. Pete Warden, "Speech Commands: A Dataset for
Limited-Vocabulary Speech Recognition" (arXiv 1804.03209).
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from sashimi_diffusion.data.audio import EXTENSIONS, import_torchaudio
from sashimi_diffusion.data.cache import cached_recordings
from sashimi_diffusion.data.levels import contrast_db
from sashimi_diffusion.data.partition import Part
from sashimi_diffusion.data.recordings import (
    CachedDataset,
    check_request,
    report_bad_files,
    report_unusual_files,
    require_folder,
)
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.paths import entries, expanded, is_file, is_folder, read_text
from sashimi_diffusion.suggestions import nearest_name
from sashimi_diffusion.terminal import listed, one_line, printable

DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
"""The words of SC09."""
SPLITS = ("train", "validation", "test")
SOURCE_RATE = 16000
_LAYOUTS = (".", "speech_commands_v0.02", "SpeechCommands/speech_commands_v0.02")
SPLIT_LISTS = {"validation": "validation_list.txt", "test": "testing_list.txt"}
_LISTED = 4  # number of words that a message lists


class SpeechCommands(CachedDataset):
    """Some words of Speech Commands: one word per recording, 16 kHz. The default is SC09, the ten digits.

    Recordings are padded with zeros on the right or cut to ``length`` samples. ``class_names`` are the words in the
    given order, so the label of a digit of SC09 is the digit itself. The splits are those of ``validation_list.txt``
    and ``testing_list.txt``; if a list is missing, :func:`hashed_split` computes its split.

    Args:
        path: the folder that contains a folder for each word, or a folder above it in torchaudio's layout
            (``SpeechCommands/speech_commands_v0.02``). If the words are in several such folders, a list of them. Each
            has its own lists of the splits.
        split: "train", "validation" or "test".
        sample_rate: in Hz; recordings are resampled if it is not 16,000.
        length: samples in an item.
        download: download the data (2.3 GB) with torchaudio into the first folder if a word is not found.
        cache_dir: folder for decoded audio; default :func:`sashimi_diffusion.cache_files.default_cache_dir`.
        skip_bad_files: skip files that cannot be used, with a warning.
        words: the words, in the order of the classes; they are names of folders.
        min_contrast_db: leave out recordings with a smaller :func:`sashimi_diffusion.data.levels.contrast_db`, in which
            there is no word, or only below noise or a constant offset; None keeps all. ``changes`` says how many.

    Raises:
        UserError: a word has no folder or no recordings, the download fails, the split is empty, the same recording is
            in two folders, or files are unreadable, empty, not finite or not at 16 kHz.
    """

    def __init__(
        self,
        path: Path | str | Sequence[Path | str],
        split: str = "train",
        sample_rate: int = SOURCE_RATE,
        length: int = SOURCE_RATE,
        download: bool = False,
        cache_dir: Path | str | None = None,
        skip_bad_files: bool = False,
        words: Sequence[str] = DIGITS,
        min_contrast_db: float | None = None,
    ) -> None:
        check_request(sample_rate, length, split, SPLITS)
        check_words(words)
        paths = [expanded(path)] if isinstance(path, str | Path) else [expanded(each).absolute() for each in path]
        roots = _find_or_download(paths, words, download)
        files = [file for word in words for root in roots for file in _audio_files(root / word)]
        _check_distinct(files)
        clips = cached_recordings(files, sample_rate, source_rate=SOURCE_RATE, cache_dir=cache_dir)
        bad = {files[position]: reason for position, reason in clips.bad.items()}
        shared = roots[0] if len(roots) == 1 else Path(os.path.commonpath(roots))
        report_bad_files(bad, len(files), shared, skip_bad_files, cache_dir)
        unusual = {files[position]: text for position, text in clips.warnings.items()}
        report_unusual_files(unusual, len(files) - len(bad), shared, cache_dir)
        lists = {root: read_split_lists(root) for root in roots}
        positions = [
            i
            for i, file in enumerate(files)
            if file not in bad and listed_split(file, lists[file.parent.parent]) == split
        ]
        if not positions:
            raise UserError(
                f"{_joined(roots)} has no recordings of the {split} split of Speech Commands; choose another split"
            )
        total = len(positions)
        if min_contrast_db is not None:
            positions = [i for i in positions if contrast_db(clips[i], sample_rate) >= min_contrast_db]
            if not positions:
                raise UserError(
                    f"no recording of the {split} split in {_joined(roots)} has a contrast of {min_contrast_db:g} dB "
                    "between loud and quiet parts: lower min_contrast_db (data.min_contrast_db in a config)"
                )
        chosen = [files[position] for position in positions]
        part = Part(chosen, [words.index(file.parent.name) for file in chosen], list(words))
        super().__init__(part, clips, positions, sample_rate, length, whole=True)
        if len(positions) < total:
            left_out = f"{total - len(positions)} of {total} recordings are left out, with a contrast below"
            self.changes = "; ".join(filter(None, [self.changes, f"{left_out} {min_contrast_db:g} dB"]))


SpeechCommandsDigits = SpeechCommands
"""The name of the class in earlier versions, which had no other words."""


def check_words(words: Sequence[str]) -> None:
    """Check the words of a data set.

    Raises:
        UserError: there is no word, a word is there twice, or one cannot be the name of a folder.
    """
    if isinstance(words, str) or not words:
        raise UserError(f"expected a list of at least one word of Speech Commands, got {words!r}")
    for word in words:
        if not isinstance(word, str) or not word or word[0] == "." or "/" in word or "\0" in word:
            raise UserError(f"{printable(repr(word))} is no word of Speech Commands: expected the name of a folder")
    twice = next((word for word in words if list(words).count(word) > 1), None)
    if twice is not None:
        raise UserError(f"the word {printable(twice)} is there twice: each word is a class, keep one")


def hashed_split(file_name: str, validation_percentage: float = 10.0, testing_percentage: float = 10.0) -> str:
    """Return the split of a recording by the rule in the README of the data set.

    The part of the name before ``_nohash_`` identifies the speaker. Its SHA-1 hash is taken modulo 2^27 and scaled to
    percent. Values smaller than ``validation_percentage`` are validation, the next ``testing_percentage`` are test, and
    the rest is train. So all recordings of a speaker are in one split, and adding files does not move others.

    Args:
        file_name: name of the file, without folders.
        validation_percentage: percentage of speakers in the validation split.
        testing_percentage: percentage of speakers in the test split.

    Returns:
        "train", "validation" or "test".
    """
    speaker = file_name.partition("_nohash_")[0]
    largest = 2**27 - 1
    percentage = int(hashlib.sha1(os.fsencode(speaker)).hexdigest(), 16) % (largest + 1) * (100.0 / largest)
    if percentage < validation_percentage:
        return "validation"
    return "test" if percentage < validation_percentage + testing_percentage else "train"


def listed_split(file: Path, lists: dict[str, set[str]]) -> str:
    """Return the split of a recording: "train", "validation" or "test".

    Args:
        file: path of the recording, in the folder of its word.
        lists: result of :func:`read_split_lists`; :func:`hashed_split` replaces a missing list.
    """
    name = f"{file.parent.name}/{file.stem}"
    for split in SPLIT_LISTS:
        belongs = name in lists[split] if split in lists else hashed_split(file.name) == split
        if belongs:
            return split
    return "train"


def read_split_lists(root: Path) -> dict[str, set[str]]:
    """Read the lists of the validation and test splits that exist in ``root``.

    Returns:
        split -> ``word/stem`` of its files. Endings are removed because the lists say .wav even if the files are flac.

    Raises:
        UserError: a list cannot be read or is not text.
    """
    lists = {}
    for split, name in SPLIT_LISTS.items():
        if is_file(root / name):
            lines = read_text(root / name, f"the list of the {split} split of Speech Commands").splitlines()
            paths = [Path(line.strip()) for line in lines]
            lists[split] = {path.with_suffix("").as_posix() for path in paths if path.name}
    return lists


def _audio_files(folder: Path) -> list[Path]:
    return [path for path in entries(folder) if path.name.lower().endswith(EXTENSIONS) and path.name[0] != "."]


def _check_distinct(files: Sequence[Path]) -> None:
    """Refuse a recording that two folders contain: it could be in the training and in the validation split."""
    first: dict[tuple[str, str], Path] = {}
    for file in files:
        other = first.setdefault((file.parent.name, file.stem), file)
        if other.parent != file.parent:
            raise UserError(f"the same recording is in two folders, {printable(other)} and {printable(file)}: keep one")


def _find(path: Path, words: Sequence[str]) -> Path:
    """Return the folder in which most of the words are, by torchaudio's layout; ``path`` itself if there are none."""
    return max((path / layout for layout in _LAYOUTS), key=lambda folder: len(_present([folder], words)))


def _present(roots: Sequence[Path], words: Sequence[str]) -> list[str]:
    return [word for word in words if any(is_folder(root / word) for root in roots)]


def _find_or_download(paths: Sequence[Path], words: Sequence[str], download: bool) -> list[Path]:
    """Return the folders that contain the folders of the words."""
    if not paths:
        raise UserError("there is no folder of Speech Commands: give at least one")
    roots = [_find(path, words) for path in paths]
    if download and len(_present(roots, words)) < len(words):
        _download(paths[0])
        roots = [_find(path, words) for path in paths]
    if len({root.resolve() for root in roots}) < len(roots):
        raise UserError(f"{_joined(paths)}: one folder is there twice, give it once")
    if len(_present(roots, words)) < len(words):
        raise _missing(paths, roots, words)
    if not any(_audio_files(root / word) for root in roots for word in words):
        what = "the digits" if list(words) == DIGITS else listed(words, _LISTED)
        raise UserError(
            f"the folders of {what} in {_joined(roots)} hold no audio: expected {', '.join(EXTENSIONS)} files"
        )
    return roots


def _missing(paths: Sequence[Path], roots: Sequence[Path], words: Sequence[str]) -> UserError:
    """Return the error that names the words without a folder, each with a similar name of a folder."""
    names = list(words) if len(words) <= _LISTED else [*words[:2], f"... {words[-1]}"]
    advice = (
        f"Speech Commands v0.02: a folder with the folders {', '.join(map(printable, names))}, from "
        "http://download.tensorflow.org/data/speech_commands_v0.02.tar.gz; or ask for the download (download=True)"
    )
    for path in paths:
        require_folder(path, advice)
    others = {entry.name for root in roots for entry in entries(root) if is_folder(entry)}.difference(words)
    present = _present(roots, words)
    near = {word: nearest_name(word, others) for word in words if word not in present}
    missing = [printable(word + (f" (did you mean {name}?)" if name else "")) for word, name in near.items()]
    return UserError(f"{_joined(paths)} has no folder named {', '.join(missing)}: expected {advice}")


def _joined(paths: Sequence[Path]) -> str:
    return " and ".join(map(printable, paths))


def _download(path: Path) -> None:
    torchaudio = import_torchaudio(
        "downloading Speech Commands",
        f"unpack http://download.tensorflow.org/data/speech_commands_v0.02.tar.gz into {printable(path)} yourself",
    )
    try:
        path.mkdir(parents=True, exist_ok=True)
        torchaudio.datasets.SPEECHCOMMANDS(path, url="speech_commands_v0.02", download=True)
    except (OSError, RuntimeError) as error:
        raise UserError(f"downloading Speech Commands into {printable(path)} failed: {one_line(error)}") from error
