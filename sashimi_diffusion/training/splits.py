"""Open the recordings of a run, by split."""

import hashlib
from collections.abc import Iterable
from typing import Any

from sashimi_diffusion.data.audio_folder import SUB_FOLDERS, AudioFolder
from sashimi_diffusion.data.hub_dataset import IF_PRESENT, HubDataset, SplitNames
from sashimi_diffusion.data.recordings import Recordings
from sashimi_diffusion.data.speech_commands import DIGITS, SpeechCommands
from sashimi_diffusion.data.tar_corpus import AUTOMATIC
from sashimi_diffusion.data.tar_shards import TarShards
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.training.data_config import DataConfig

_WHERE_TO_GET_DATA = (
    "for spoken digits clone https://github.com/Jakobovski/free-spoken-digit-dataset and set "
    "data.path=free-spoken-digit-dataset/recordings, or let data.kind=speech_commands data.download=true "
    "data.path=FOLDER fetch Speech Commands (2.3 GB)"
)

_SEPARATOR = "-"  # of the hashes in a fingerprint


def open_split(
    data: DataConfig,
    split: str,
    length: int,
    skip_bad_files: bool = False,
    speakers: str | None = None,
    labels: bool = False,
    channels: int = 1,
) -> Recordings:
    """Return the recordings of a split, divided into items of ``length`` samples.

    Args:
        data: the path and the kind of the recordings.
        split: "train", "validation" or "test".
        length: samples in an item.
        skip_bad_files: ignore files that cannot be used, with a warning.
        speakers: the field or the column that contains the speaker; None: items have no speakers.
        labels: whether the labels are used. They may then be the names of sub-folders, see ``data.pattern``; the split
            of such files depends on it.
        channels: channels of the items; 1 mixes those of every recording.

    Raises:
        UserError: the path is not set, there is no recording or no such field, or a file cannot be used.
    """
    if data.path is None:
        raise UserError(f"data.path is not set: it must name the folder of the recordings; {_WHERE_TO_GET_DATA}")
    common: dict[str, Any] = {
        "split": split,
        "sample_rate": data.sample_rate,
        "length": length,
        "cache_dir": data.cache_dir,
        "skip_bad_files": skip_bad_files,
    }
    if data.kind == "speech_commands":
        _check_speech_commands(speakers, channels)
        paths = [data.path, *data.more_paths] if data.more_paths else data.path
        common |= {"words": data.words or DIGITS, "min_contrast_db": data.min_contrast_db}
        return SpeechCommands(paths, download=data.download, **common)
    common |= {"speakers": speakers, "channels": channels, "splits": tuple(data.splits)}
    if data.kind == "webdataset":
        return TarShards(
            data.path,
            pattern=data.pattern,
            audio=data.audio_column,
            labels=(data.label_column or AUTOMATIC) if labels else None,
            shuffle_buffer=data.shuffle_buffer,
            **common,
        )
    common |= {"where": data.where, "holdout": data.holdout, "order": data.order}
    if data.kind == "hf_dataset":
        return HubDataset(
            data.path,
            audio_column=data.audio_column,
            labels=(data.label_column or IF_PRESENT) if labels else None,
            split_names=SplitNames(data.train_split, data.validation_split, data.test_split),
            subset=data.subset,
            **common,
        )
    return AudioFolder(
        data.path, pattern=data.pattern, labels=SUB_FOLDERS if labels else None, whole=data.whole, **common
    )


def _check_speech_commands(speakers: str | None, channels: int) -> None:
    if speakers is not None:
        raise UserError(
            f"data.speakers is {speakers!r}, but it needs data.kind=folder: the splits of Speech Commands have no "
            "common speakers; remove it"
        )
    if channels != 1:
        raise UserError(f"model.in_channels is {channels}, but Speech Commands has one channel: remove it")


def has_validation(data: DataConfig) -> bool:
    """Return whether the settings reserve recordings for validation."""
    named = data.kind == "hf_dataset" and data.validation_split is not None
    return data.kind == "speech_commands" or bool(data.holdout) or named or data.splits[1] > 0


def fingerprint(recordings: Recordings) -> str:
    """Return two hashes, joined by "-": of the names, lengths, labels and speakers of the recordings, in order, and of
    the contents of their files.

    Folders are not part of it, so data may be moved before a run is resumed. See :func:`compare_fingerprints`.
    """
    return _SEPARATOR.join(recordings.fingerprint())


def combined_fingerprint(fingerprints: Iterable[tuple[str, str]]) -> str:
    """Return the fingerprint of several named sets of recordings, from pairs of the name and the fingerprint."""
    split = [(name, *text.split(_SEPARATOR)) for name, text in fingerprints]
    names, contents = ("\n".join(f"{parts[0]} {parts[i]}" for parts in split) for i in (1, 2))
    return _hash(names) + _SEPARATOR + _hash(contents)


def with_teacher(fingerprint: str, teacher: str) -> str:
    """Return the fingerprint of recordings that a teacher says more about, with the hash of the teacher."""
    return f"{fingerprint}{_SEPARATOR}{teacher}"


def compare_fingerprints(stored: str, current: str) -> str:
    """Return what differs between the recordings of a checkpoint and those of now.

    Args:
        stored: fingerprint in the checkpoint. Older versions stored no hash of the teacher, and still older ones only
            the first hash.
        current: fingerprint of the recordings that the settings select now.

    Returns:
        "nothing"; "unknown" if the checkpoint does not have the hash of the contents, and the rest is equal;
        "contents" if only the contents differ; "teacher" if only the teacher differs; otherwise "recordings".
    """
    known, found = stored.split(_SEPARATOR), current.split(_SEPARATOR)
    for what, one, other in zip(("recordings", "contents", "teacher"), known, found, strict=False):
        if one != other:
            return what
    return "unknown" if len(known) == 1 < len(found) else "nothing"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
