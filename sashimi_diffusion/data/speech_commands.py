"""SC09, the ten spoken digits of Google Speech Commands: the data set of many papers on audio generation.

Pete Warden, "Speech Commands: A Dataset for Limited-Vocabulary Speech Recognition" (arXiv 1804.03209).
"""

import hashlib
import os
from pathlib import Path

from sashimi_diffusion.data.audio import EXTENSIONS, import_torchaudio
from sashimi_diffusion.data.cache import cached_recordings
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
from sashimi_diffusion.terminal import one_line, printable

DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
SPLITS = ("train", "validation", "test")
SOURCE_RATE = 16000
_LAYOUTS = (".", "speech_commands_v0.02", "SpeechCommands/speech_commands_v0.02")
SPLIT_LISTS = {"validation": "validation_list.txt", "test": "testing_list.txt"}


class SpeechCommandsDigits(CachedDataset):
    """The SC09 data set: one spoken digit per recording, 16 kHz.

    Recordings are padded with zeros on the right or cut to ``length`` samples. ``class_names`` are zero to nine in this
    order, so a label is the digit itself. The splits are those of ``validation_list.txt`` and ``testing_list.txt``; if
    a list is missing, :func:`hashed_split` computes its split.

    Args:
        path: the folder that contains a folder for each word, or a folder above it in torchaudio's layout
            (``SpeechCommands/speech_commands_v0.02``).
        split: "train", "validation" or "test".
        sample_rate: in Hz; recordings are resampled if it is not 16,000.
        length: samples in an item.
        download: download the data (2.3 GB) with torchaudio if they are not found.
        cache_dir: folder for decoded audio; default :func:`sashimi_diffusion.cache_files.default_cache_dir`.
        skip_bad_files: skip files that cannot be used, with a warning.

    Raises:
        UserError: the folder has no Speech Commands, the download fails, the split is empty, or files are unreadable,
            empty, not finite or not at 16 kHz.
    """

    def __init__(
        self,
        path: Path | str,
        split: str = "train",
        sample_rate: int = SOURCE_RATE,
        length: int = SOURCE_RATE,
        download: bool = False,
        cache_dir: Path | str | None = None,
        skip_bad_files: bool = False,
    ) -> None:
        check_request(sample_rate, length, split, SPLITS)
        root = _find_or_download(expanded(path), download)
        files = [file for digit in DIGITS for file in _audio_files(root / digit)]
        clips = cached_recordings(files, sample_rate, source_rate=SOURCE_RATE, cache_dir=cache_dir)
        bad = {files[position]: reason for position, reason in clips.bad.items()}
        report_bad_files(bad, len(files), root, skip_bad_files, cache_dir)
        unusual = {files[position]: text for position, text in clips.warnings.items()}
        report_unusual_files(unusual, len(files) - len(bad), root, cache_dir)
        lists = read_split_lists(root)
        positions = [i for i, file in enumerate(files) if file not in bad and listed_split(file, lists) == split]
        if not positions:
            raise UserError(
                f"{printable(root)} has no recordings of the {split} split of Speech Commands; choose another split"
            )
        chosen = [files[position] for position in positions]
        part = Part(chosen, [DIGITS.index(file.parent.name) for file in chosen], list(DIGITS))
        super().__init__(part, clips, positions, sample_rate, length, whole=True)


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


def _find(path: Path) -> Path | None:
    return next((path / layout for layout in _LAYOUTS if all(is_folder(path / layout / d) for d in DIGITS)), None)


def _find_or_download(path: Path, download: bool) -> Path:
    root = _find(path)
    if root is None and download:
        _download(path)
        root = _find(path)
    if root is None:
        advice = (
            "Speech Commands v0.02: a folder with the folders zero, one, ... nine, from "
            "http://download.tensorflow.org/data/speech_commands_v0.02.tar.gz; or ask for the download (download=True)"
        )
        require_folder(path, advice)
        missing = [digit for digit in DIGITS if not is_folder(path / digit)]
        raise UserError(f"{printable(path)} has no folder named {', '.join(missing)}: expected {advice}")
    if not any(_audio_files(root / digit) for digit in DIGITS):
        raise UserError(
            f"the folders of the digits in {printable(root)} hold no audio: expected {', '.join(EXTENSIONS)} files"
        )
    return root


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
