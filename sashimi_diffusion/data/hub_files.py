"""Open data sets with the Hugging Face library ``datasets``, which the import of this module needs.

Audio is never decoded here: tables have the bytes or the paths of the audio files.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.paths import expanded, is_file, is_folder, status
from sashimi_diffusion.terminal import first_line, printable

_SECONDS = 10.0  # for an answer of the hub
_SAVED = ("dataset_dict.json", "state.json")  # what save_to_disk writes


class StoredAudio(datasets.Audio):
    """The feature of audio files that are stored as they are; that of the library needs torchcodec to store them."""

    def encode_example(self, value: Any) -> dict[str, Any]:
        """Return the content or the path of an audio file as a table stores it."""
        if isinstance(value, str):
            return {"bytes": None, "path": value}
        return {"bytes": value.get("bytes"), "path": value.get("path")}


def open_tables(path: str, subset: str | None, cache: Path) -> dict[str, datasets.Dataset]:
    """Return the splits of a data set by name; a data set without splits is the split "train".

    Args:
        path: a folder that ``save_to_disk`` wrote, a folder of data files (parquet, audio, …), or an id on the
            Hugging Face hub.
        subset: the configuration of the data set; None: the only one, or the default.
        cache: folder in which tables of data files are stored.

    Raises:
        UserError: there is no such data set or configuration, or it cannot be read.
    """
    folder = expanded(path)
    saved = any(is_file(folder / name) for name in _SAVED)
    if saved and subset is not None:
        raise UserError(
            f"data.subset is {subset!r}, but {printable(folder)} was written by save_to_disk and has no "
            "configurations: remove it"
        )
    if is_folder(folder):
        what = f"cannot read {printable(folder)} as a Hugging Face data set"
        advice = "expected a folder that save_to_disk wrote, or one with parquet or audio files"
        stored = str(cache / "datasets")
    elif _is_local(path, folder):
        problem = "does not exist" if status(folder) is None else "is not a folder"
        raise UserError(
            f"data.path {printable(path)} {problem}: expected a folder of a Hugging Face data set, or an id such as "
            "owner/name"
        )
    else:
        what = f"data.path {printable(path)} is no folder, and no data set of this id can be loaded from the hub"
        advice = "check the path, or the id and the network"
        stored = None
    try:
        if saved:
            found = datasets.load_from_disk(str(folder))
        elif stored is not None:
            found = _built(str(folder), subset, stored)
        else:
            with _asked_once(path):
                found = _built(path, subset, None)
    except Exception as error:  # of any of the libraries below it
        cause = error.__cause__ or error  # the first error says only that there was one
        raise UserError(f"{what} ({type(cause).__name__}: {first_line(cause)}): {advice}") from error
    tables = dict(found) if isinstance(found, dict) else {"train": found}
    return {str(name): table.with_format("arrow") for name, table in tables.items()}


def _is_local(path: str, folder: Path) -> bool:
    """Return whether a path that is no folder is not meant as an id on the hub either."""
    no_id = path.startswith(("/", ".", "~")) or path.count("/") != 1
    return no_id or status(folder) is not None or status(folder.parent) is not None


@contextlib.contextmanager
def _asked_once(name: str) -> Iterator[None]:
    """Let the block use the cache of the hub only, if the hub cannot be reached.

    The library tries again for half a minute, and reports each try on the terminal.

    Raises:
        RepositoryNotFoundError: the hub has no data set of this name.
    """
    online = True
    try:
        HfApi().dataset_info(name, timeout=_SECONDS)
    except RepositoryNotFoundError:
        raise
    except Exception as error:  # an answer of the hub has one class; that of a missing network depends on the version
        online = isinstance(error, HfHubHTTPError)
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not online
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _built(path: str, subset: str | None, stored: str | None) -> Any:
    builder = datasets.load_dataset_builder(path, subset, cache_dir=stored)
    if hasattr(builder, "BASE_FEATURE"):  # that of folders of audio files
        builder.BASE_FEATURE = StoredAudio
    builder.download_and_prepare()
    return builder.as_dataset()


def columns_of(table: datasets.Dataset) -> dict[str, str]:
    """Return the type of every column of a table in words, by name."""
    return {name: _type_in_words(feature) for name, feature in table.features.items()}


def _type_in_words(feature: Any) -> str:
    kind = "audio" if isinstance(feature, datasets.Audio) else type(feature).__name__
    return str(feature.dtype) if isinstance(feature, datasets.Value) else kind


def may_be_audio(table: datasets.Dataset, column: str) -> bool:
    """Return whether a column can contain audio files: their bytes, their paths, or both in a struct."""
    kind = table.data.schema.field(column).type
    if pa.types.is_struct(kind):
        return {"bytes", "path"} & {field.name for field in kind} != set()
    return any(test(kind) for test in (pa.types.is_binary, pa.types.is_large_binary, *_TEXT))


_TEXT = (pa.types.is_string, pa.types.is_large_string)


def holds_bytes(table: datasets.Dataset, column: str) -> bool:
    """Return whether a column that may be audio is more than text, so that it probably is audio."""
    return may_be_audio(table, column) and not any(test(table.data.schema.field(column).type) for test in _TEXT)


def cells(table: datasets.Dataset, column: str, start: int, stop: int) -> list[Any]:
    """Return the values of a column in some rows; audio is the bytes, the path, or a dictionary of both."""
    return table[start:stop].column(column).to_pylist() if stop > start else []


def names_of(table: datasets.Dataset, column: str) -> list[str] | None:
    """Return the names of the classes of a column, or None if its values are not indices of classes."""
    feature = table.features[column]
    return list(feature.names) if isinstance(feature, datasets.ClassLabel) else None


def stamps(table: datasets.Dataset) -> list[Any]:
    """Return what changes when a table changes: its fingerprint, and size and times of its files."""
    files = [Path(file["filename"]) for file in table.cache_files]
    found = [file.stat() for file in files]
    return [table._fingerprint, *([s.st_size, s.st_mtime_ns, s.st_ctime_ns] for s in found)]
