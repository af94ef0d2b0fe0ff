"""The recordings a run trains and is measured on."""

import hashlib

from sashimi_diffusion.data.recordings import Recordings
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.training.config import DataConfig

_WHERE_TO_GET_DATA = (
    "for spoken digits clone https://github.com/Jakobovski/free-spoken-digit-dataset and set "
    "data.path=free-spoken-digit-dataset/recordings, or let data.kind=speech_commands data.download=true "
    "data.path=FOLDER fetch Speech Commands (2.3 GB)"
)


def open_split(
    data: DataConfig, split: str, length: int, skip_bad_files: bool = False, speakers: str | None = None
) -> Recordings:
    """The recordings of the split "train", "validation" or "test", in items of ``length`` samples.

    Args:
        data: where they are.
        split: which of them.
        length: samples in an item.
        skip_bad_files: warn of files that cannot be used and go on without them.
        speakers: the field of the file names that says who speaks; None: items do not say it.

    Raises:
        UserError: no path, nothing there, files that cannot be used, or speakers of data that name none.
    """
    if data.path is None:
        raise UserError(f"data.path is not set: it must name the folder of the recordings; {_WHERE_TO_GET_DATA}")
    common = {
        "split": split,
        "sample_rate": data.sample_rate,
        "length": length,
        "cache_dir": data.cache_dir,
        "skip_bad_files": skip_bad_files,
    }
    if data.kind == "speech_commands":
        if speakers is not None:
            raise UserError(
                f"data.speakers is {speakers!r}, but it needs data.kind=folder: the splits of Speech Commands have no "
                "speaker in common; leave it out"
            )
        from sashimi_diffusion.data.speech_commands import SpeechCommandsDigits

        return SpeechCommandsDigits(data.path, download=data.download, **common)
    from sashimi_diffusion.data.audio_folder import AudioFolder

    return AudioFolder(
        data.path,
        pattern=data.pattern,
        where=data.where,
        holdout=data.holdout,
        splits=tuple(data.splits),
        order=data.order,
        speakers=speakers,
        **common,
    )


def has_validation(data: DataConfig) -> bool:
    """Whether the data have a split for validation."""
    return data.kind == "speech_commands" or bool(data.holdout) or data.splits[1] > 0


def fingerprint(recordings: Recordings) -> str:
    """A hash of which recordings there are, in order, with their lengths, labels and speakers: equal where training is.

    Folders do not count, so data may be moved between a run and its continuation.
    """
    speakers = recordings.speakers
    text = "\n".join(
        f"{recordings.files[recording].name} {start} {recordings.clip_length(item)} {recordings.labels[item]}"
        + ("" if speakers is None else f" {speakers[item]}")
        for item, (recording, start) in enumerate(recordings.items)
    )
    return hashlib.sha256(text.encode()).hexdigest()
