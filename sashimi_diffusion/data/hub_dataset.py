"""A data set of the Hugging Face library ``datasets``: on disk, as a folder of data files, or on the hub."""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from sashimi_diffusion.cache_files import (
    cache_folder,
    read_undamaged_record,
    write_cache_record,
)
from sashimi_diffusion.data.cache import Format, cached_audio, writing_cache
from sashimi_diffusion.data.decoding import AudioFileError, Decoded, decode_audio, decode_content
from sashimi_diffusion.data.fingerprints import file_fingerprints
from sashimi_diffusion.data.names import Fields, not_text, require, select
from sashimi_diffusion.data.partition import SPLITS, Wanted, check_division, choose_part
from sashimi_diffusion.data.recordings import CachedDataset, check_request, report_bad_files, report_unusual_files
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.paths import expanded
from sashimi_diffusion.terminal import listed, printable

IF_PRESENT = "label, if there is such a column"
"""Value of the argument ``labels`` of :class:`HubDataset`."""
_FORMAT = 1  # version of the stored hashes of rows
_ROWS = 64  # read at a time


class SplitNames(NamedTuple):
    """Names of the splits of a data set that are used.

    Attributes:
        train: the training split.
        validation, test: None: the split called "validation" or "test" if there is one, otherwise a share of the
            training split. A part whose share is 0 is empty unless its split is named.
    """

    train: str = "train"
    validation: str | None = None
    test: str | None = None


DEFAULT_NAMES = SplitNames()


class HubDataset(CachedDataset):
    """Data set of chunks of equal length of the recordings in a Hugging Face data set.

    Audio is read as stored, as bytes or as a path, and decoded by this package, so that files of a data set have the
    same checks as other files; torchcodec is not needed. Chunks are those of
    :class:`sashimi_diffusion.data.AudioFolder`.

    The name of a recording is that of its split and its row. Where the data set has no split of its own for validation
    or test, these parts are shares of the training split, by the rule of ``AudioFolder``.

    Args:
        path: a folder that ``save_to_disk`` wrote, a folder of data files, or an id on the hub, such as "owner/name".
        split: "train", "validation", "test" or "all".
        sample_rate: in Hz; recordings at other rates are resampled.
        length: samples in an item.
        audio_column: column of the audio. None: the only column with the type of audio, or that is called "audio".
        labels: column of the class; ``IF_PRESENT``: the column "label" if there is one. None: there are no classes.
        speakers: column of the speaker, or None.
        where, holdout, splits, order, seed: see ``AudioFolder``; the fields are the columns. ``holdout`` divides the
            training split; the other splits are then not used.
        split_names: the splits that are used.
        subset: the configuration of the data set.
        cache_dir: folder for decoded audio; default :func:`sashimi_diffusion.cache_files.default_cache_dir`.
        skip_bad_files: skip recordings that cannot be used, with a warning.
        channels: see ``AudioFolder``.

    Raises:
        UserError: ``datasets`` is not installed; there is no such data set, split, column or value; the requested
            split is empty; or recordings cannot be used.
    """

    def __init__(
        self,
        path: str,
        split: str = "train",
        sample_rate: int = 16000,
        length: int = 16000,
        audio_column: str | None = None,
        labels: str | None = None,
        speakers: str | None = None,
        where: Mapping[str, object] | None = None,
        holdout: Mapping[str, object] | None = None,
        splits: Sequence[float] = (0.88, 0.06, 0.06),
        order: str = "shuffled",
        seed: int = 0,
        split_names: SplitNames = DEFAULT_NAMES,
        subset: str | None = None,
        cache_dir: Path | str | None = None,
        skip_bad_files: bool = False,
        channels: int = 1,
    ) -> None:
        check_request(sample_rate, length, split, SPLITS)
        check_division(splits, order)
        cache, root = cache_folder(cache_dir), Path(expanded(path))
        tables = _files().open_tables(path, subset, cache)
        parts = _parts(tables, path, split_names, splits, bool(holdout))
        rows = _Rows(root, {name: tables[name] for name in parts}, path, audio_column)
        if labels == IF_PRESENT:
            labels = "label" if "label" in rows.columns else None
        columns = [column for column in (labels, speakers) if column is not None]
        for name in (*columns, *(where or {}), *(holdout or {})):
            require(name, list(rows.columns), "the settings name the column", "the columns are")
        fields = rows.fields(list(dict.fromkeys([*columns, *(where or {}), *(holdout or {})])))
        kept = select(fields, where or {}, list(rows.columns), "where")

        with writing_cache(cache):
            hashes = rows.hashes(cache)
        places = [rows.position[file] for file in kept]
        form = Format(sample_rate, None, channels)
        clips = cached_audio(
            [hashes[place] for place in places], lambda number: rows.decode(places[number], channels), form, cache
        )
        bad = {kept[number]: reason for number, reason in clips.bad.items()}
        bad |= {file: f"{column} has no value" for column in columns for file in kept if column not in fields[file]}
        bad |= not_text({file: fields[file] for file in kept}, {"label": labels, "speaker": speakers})
        report_bad_files(bad, len(kept), root, skip_bad_files, cache_dir)
        unusual = {kept[number]: text for number, text in clips.warnings.items()}
        report_unusual_files(unusual, len(kept) - len(bad), root, cache_dir)

        usable = {file: fields[file] for file in kept if file not in bad}
        known = {file: own for file in usable if (own := parts[rows.split_of(file)]) is not None}
        divided = Wanted(split, labels, speakers, holdout, _shares(splits, parts.values()), order, seed)
        part = choose_part(usable, list(rows.columns), root, divided, known)
        number_of = {file: number for number, file in enumerate(kept)}
        super().__init__(part, clips, [number_of[file] for file in part.files], sample_rate, length)


def _files() -> ModuleType:
    """Import the module that needs ``datasets``."""
    try:
        from sashimi_diffusion.data import hub_files
    except ImportError as error:
        raise UserError(
            f"data.kind=hf_dataset needs datasets: pip install datasets ({type(error).__name__}: {printable(error)})"
        ) from error
    return hub_files


def _parts(
    tables: Mapping[str, Any], path: str, names: SplitNames, splits: Sequence[float], held_out: bool
) -> dict[str, str | None]:
    """Return the splits that are used, with the part that each is; None for the training split, which is divided."""
    used: dict[str, str | None] = {}
    for part, share in zip(("validation", "test"), splits[1:], strict=True):
        chosen = getattr(names, part)
        if chosen is None and share > 0 and part in tables:
            chosen = part
        if chosen is not None and not held_out:
            used[chosen] = part
    for name in (names.train, *used):
        require(name, sorted(tables), f"{printable(path)}: the settings name the split", "the splits are")
    if names.train in used:
        raise UserError(f"data.train_split and data.{used[names.train]}_split are both {names.train!r}: change one")
    return {names.train: None, **used}


def _shares(splits: Sequence[float], own: Collection[str | None]) -> tuple[float, ...]:
    """Return the shares of the training split, without those of parts that have a split of their own."""
    held_out = [0.0 if part in own else share for part, share in zip(("validation", "test"), splits[1:], strict=True)]
    return (1 - sum(held_out), *held_out)


class _Rows:
    """The rows of some splits as recordings with names.

    Args:
        root: path of the data set, for the names.
        tables: tables by split.
        path: the data set as the user has named it.
        audio: column of the audio, or None.

    Attributes:
        columns: types of all columns by name.
        position: number of each recording by its name.
    """

    def __init__(self, root: Path, tables: Mapping[str, Any], path: str, audio: str | None) -> None:
        self._hub, self._root, self._tables = _files(), root, dict(tables)
        self.columns: dict[str, str] = self._hub.columns_of(next(iter(tables.values())))
        for name, table in tables.items():
            if self._hub.columns_of(table).keys() != self.columns.keys():
                raise UserError(f"the split {name!r} of {printable(path)} has other columns than the training split")
        self._audio = self._audio_column(path, audio)
        self._places = [(name, row) for name, table in tables.items() for row in range(len(table))]
        if not self._places:
            raise UserError(f"{printable(path)} has no rows")
        self.position = {self._root / name / f"row {row}": i for i, (name, row) in enumerate(self._places)}

    def _audio_column(self, path: str, chosen: str | None) -> str:
        table, listing = next(iter(self._tables.values())), listed([f"{n} ({t})" for n, t in self.columns.items()], 20)
        if chosen is not None:
            require(chosen, list(self.columns), "data.audio_column is", "the columns are")
            if not self._hub.may_be_audio(table, chosen):
                raise UserError(
                    f"data.audio_column is {chosen!r}, but its values ({self.columns[chosen]}) are no audio files: "
                    f"expected their bytes or paths; the columns are {listing}"
                )
            return chosen
        likely = [name for name in self.columns if self._hub.holds_bytes(table, name)]
        if "audio" in self.columns and self._hub.may_be_audio(table, "audio"):
            return "audio"
        if len(likely) != 1:
            problem = "no column" if not likely else "more than one column"
            raise UserError(
                f"{printable(path)} has {problem} of audio: set data.audio_column to one of the columns; they are "
                f"{listing}"
            )
        return likely[0]

    def split_of(self, file: Path) -> str:
        """Return the split of a recording."""
        return self._places[self.position[file]][0]

    def fields(self, columns: Sequence[str]) -> Fields:
        """Return the values of some columns as text by recording; a missing value is in no field."""
        fields: Fields = {file: {} for file in self.position}
        files = list(self.position)
        for column in columns:
            values = [value for table in self._tables.values() for value in self._texts(table, column)]
            for file, value in zip(files, values, strict=True):
                if value is not None:
                    fields[file][column] = value
        return fields

    def _texts(self, table: Any, column: str) -> list[str | None]:
        names = self._hub.names_of(table, column)
        texts: list[str | None] = []
        try:
            values = self._hub.cells(table, column, 0, len(table))
        except UnicodeDecodeError as error:
            raise UserError(f"the column {column!r} has values that are not UTF-8 text: correct them") from error
        for value in values:
            if names is not None and isinstance(value, int):
                texts.append(names[value] if 0 <= value < len(names) else None)
            elif value is None or isinstance(value, (str, int)):
                texts.append(None if value in (None, "") else str(value))
            else:
                raise UserError(
                    f"the column {column!r} has values of the type {self.columns[column]}: expected text, whole "
                    "numbers or classes"
                )
        return texts

    def decode(self, position: int, channels: int) -> Decoded:
        """Decode a recording.

        Raises:
            AudioFileError: it cannot be used.
        """
        split, row = self._places[position]
        content, path = _content(self._hub.cells(self._tables[split], self._audio, row, row + 1)[0])
        if content is not None:
            return decode_content(content, f"{split}/row {row}", channels)
        if path is None:
            raise AudioFileError(f"{split}/row {row}", "no audio (neither bytes nor a path)")
        return decode_audio(self._root / path, channels=channels)

    def hashes(self, cache: Path) -> list[str]:
        """Return a hash of the content of each recording; hashes of stored bytes are kept in ``cache``.

        Raises:
            OSError: the hashes cannot be stored.
        """
        return [text for name in self._tables for text in self._hashes_of(name, cache)]

    def _hashes_of(self, split: str, cache: Path) -> list[str]:
        table = self._tables[split]
        stamps = [_FORMAT, self._audio, *self._hub.stamps(table)]
        memo = cache / f"{hashlib.sha256(repr((self._root.absolute(), split)).encode()).hexdigest()[:32]}.rows.json"
        stored = read_undamaged_record(memo, "the data set is read again")
        if isinstance(stored, list) and len(stored) == 2 and stored[0] == stamps and len(stored[1]) == len(table):
            rows = stored[1]
        else:
            rows = [
                self._row(cell)
                for start in range(0, len(table), _ROWS)
                for cell in self._hub.cells(table, self._audio, start, min(start + _ROWS, len(table)))
            ]
            write_cache_record(memo, [stamps, rows])
        # Files beside the table may change without it.
        paths = [row for row, (_, is_path) in enumerate(rows) if is_path]
        found = file_fingerprints([self._root / rows[row][0] for row in paths], cache) if paths else []
        of_paths = dict(zip(paths, found, strict=True))
        return [of_paths.get(row, text) for row, (text, _) in enumerate(rows)]

    @staticmethod
    def _row(cell: Any) -> tuple[str, bool]:
        """Return the hash of a cell of the audio column, or its path, and whether it is a path."""
        content, path = _content(cell)
        if content is None:
            return ("none", False) if path is None else (path, True)
        return hashlib.blake2b(content, digest_size=16).hexdigest(), False


def _content(cell: Any) -> tuple[bytes | None, str | None]:
    """Return the bytes and the path of a cell of the audio column."""
    if isinstance(cell, dict):
        return cell.get("bytes"), cell.get("path")
    return (cell, None) if isinstance(cell, bytes) else (None, cell)
