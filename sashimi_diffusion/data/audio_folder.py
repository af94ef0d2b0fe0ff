"""A folder of recordings as a data set: chunks of equal length, labels from file names, splits of whole files."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from sashimi_diffusion.data.audio_files import find_audio
from sashimi_diffusion.data.cache import cached_recordings
from sashimi_diffusion.data.names import FOLDER, Fields, field_names, not_text, read_fields, require, select
from sashimi_diffusion.data.partition import SPLITS, Wanted, check_division, choose_part
from sashimi_diffusion.data.recordings import (
    CachedDataset,
    check_request,
    report_bad_files,
    report_unusual_files,
    require_folder,
)
from sashimi_diffusion.errors import UserError

SUB_FOLDERS = "sub-folders"
"""Value of the argument ``labels`` of :class:`AudioFolder`; no field of a pattern can have this name."""


class AudioFolder(CachedDataset):
    """Data set of chunks of equal length of all wav, flac, ogg and mp3 files in a folder and its sub-folders.

    Hidden files are ignored. A recording is cut into consecutive chunks of ``length`` samples, which are the items. The
    remainder at its end is in no item, only in :meth:`clip`. A recording that is shorter than one chunk is padded with
    zeros on the right; longer recordings are never padded.

    A split consists of whole files. With ``order="shuffled"``, the files of each class are ordered by a hash of
    ``seed`` and their paths: the first are the validation split, the next the test split, the rest the training split.
    With ``order="name"``, all files are in the natural order of their paths: the first are the training split, the next
    the validation split, the last the test split, like the music data sets of the SaShiMi paper. A split with a ratio
    above zero has at least one file (of each class, if shuffled). If there are too few files for that, the training
    split gets the first file, and the validation split the second.

    Args:
        path: the folder.
        split: "train", "validation", "test" or "all".
        sample_rate: in Hz; recordings at other rates are resampled.
        length: samples in an item.
        pattern: pattern of the file names without endings. ``"{label}_{speaker}_{index}"`` reads three fields from
            ``7_jackson_32.wav``. A pattern with slashes also reads folders: ``"{speaker}/{label}_{index}"``. A file
            with another name is a bad file. The field ``folder`` is always the first sub-folder.
        labels: field of the class, for example ``"folder"``. Default: ``label`` if ``pattern`` has it, otherwise there
            are no classes. ``"sub-folders"``: as the default, but without ``pattern`` the first sub-folder is the class
            if the files are in at least two sub-folders.
        where: use only the files in which every field of this mapping has one of the given values, for example
            ``{"speaker": ["jackson", "nicolas"]}``.
        holdout: replaces ``splits``. The files in which every field of this mapping has one of the given values are the
            validation split, all others the training split, for example ``{"index": ["0", "1"]}``. There is no test
            split.
        splits: ratios of training, validation and test files.
        order: "shuffled" or "name", see above.
        seed: seed of the shuffled order.
        normalize_rms: scale every recording to this root mean square (1.0 is full scale); None does not scale.
        cache_dir: folder for decoded audio; default :func:`sashimi_diffusion.cache_files.default_cache_dir`.
        skip_bad_files: skip files that cannot be used, with a warning.
        speakers: field of the speaker, for example ``"speaker"``. Default: items have no speaker.
        channels: 1: the channels of every recording are mixed. A larger number: channels of the items; recordings with
            another number are bad files.
        whole: each recording is one item, its beginning, instead of one for each ``length`` samples.

    Raises:
        UserError: the folder does not exist or has no audio, the split is empty, a field or value does not exist, or
            files are unreadable, empty, not finite or do not match ``pattern``.
    """

    def __init__(
        self,
        path: Path | str,
        split: str = "train",
        sample_rate: int = 16000,
        length: int = 16000,
        pattern: str | None = None,
        labels: str | None = None,
        where: Mapping[str, object] | None = None,
        holdout: Mapping[str, object] | None = None,
        splits: Sequence[float] = (0.88, 0.06, 0.06),
        order: str = "shuffled",
        seed: int = 0,
        normalize_rms: float | None = None,
        cache_dir: Path | str | None = None,
        skip_bad_files: bool = False,
        speakers: str | None = None,
        channels: int = 1,
        whole: bool = False,
    ) -> None:
        check_request(sample_rate, length, split, SPLITS)
        check_division(splits, order)
        if normalize_rms is not None and not normalize_rms > 0:
            raise UserError(f"normalize_rms must be above zero, got {normalize_rms!r}")
        root = require_folder(path, "a folder with recordings (wav, flac, ogg or mp3)")
        files, unusable = find_audio(root)
        names = field_names(pattern)
        label_field = _label_field(labels, names, files, root)
        for purpose, field in (("labels", label_field), ("speakers", speakers)):
            if field is not None:
                require(field, names, f"{purpose} names the field", "the fields are")
        fields, misnamed = read_fields(files, root, pattern)
        kept = select(fields, where or {}, names, "where")

        clips = cached_recordings(kept, sample_rate, cache_dir=cache_dir, channels=channels)
        given = {"label": label_field, "speaker": speakers}
        bad = unusable | misnamed | _without_folder(kept, fields, given)
        bad |= not_text({file: fields[file] for file in kept}, given)
        bad |= {kept[position]: reason for position, reason in clips.bad.items()}
        report_bad_files(bad, len(kept) + len(misnamed) + len(unusable), root, skip_bad_files, cache_dir)
        unusual = {kept[position]: text for position, text in clips.warnings.items()}
        report_unusual_files(unusual, len(kept) - sum(file in bad for file in kept), root, cache_dir)

        usable = {file: fields[file] for file in kept if file not in bad}
        wanted = Wanted(split, label_field, speakers, holdout, tuple(splits), order, seed)
        part = choose_part(usable, names, root, wanted)
        position_of = {file: position for position, file in enumerate(kept)}
        positions = [position_of[file] for file in part.files]
        super().__init__(part, clips, positions, sample_rate, length, normalize_rms, whole)


def _label_field(labels: str | None, names: Sequence[str], files: Sequence[Path], root: Path) -> str | None:
    """Return the field of the class, or None if there are no classes; see the argument ``labels``."""
    if labels not in (None, SUB_FOLDERS):
        return labels
    if labels == SUB_FOLDERS and names == [FOLDER]:
        folders = {relative.parts[0] for relative in (file.relative_to(root) for file in files) if relative.parts[1:]}
        return FOLDER if len(folders) > 1 else None
    return "label" if "label" in names else None


def _without_folder(files: Sequence[Path], fields: Fields, wanted: Mapping[str, str | None]) -> dict[Path, str]:
    """Return the files that are in no sub-folder, with a reason, if ``wanted`` reads the field ``folder``.

    Args:
        files: the files to check.
        fields: fields of all files.
        wanted: "label" and "speaker" -> the field that gives it, or None.
    """
    missing = " and no ".join(what for what, field in wanted.items() if field == FOLDER)
    if not missing:
        return {}
    return {file: f"in no sub-folder, so it has no {missing}" for file in files if FOLDER not in fields[file]}
