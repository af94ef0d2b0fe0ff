"""Shards of the feature cache: the results of a few files, in one checked file of the cache folder."""

import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sashimi_diffusion.cache_files import DamagedCacheError, read_cache_file, say_damaged, write_cache_file
from sashimi_diffusion.terminal import printable

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Shard:
    """Results of one shard. Each usable file has one row, or one for each of its excerpts.

    Args:
        outputs: outputs of the network, arrays (rows, ...) by name.
        properties: properties of the waveforms, arrays (rows, ...) by name.
        positions: position in the shard of the file of each row, int64 (rows,).
        bad: for each unusable file, its position in the shard and the reason.
    """

    outputs: Arrays
    properties: Arrays
    positions: np.ndarray
    bad: dict[int, str]


def write_shard(path: Path, shard: Shard) -> None:
    """Write a shard to the cache.

    Raises:
        OSError: the file cannot be written.
    """
    arrays: dict[str, Any] = {"bad": np.asarray(json.dumps(shard.bad)), "positions": shard.positions}
    arrays |= {f"outputs.{name}": values for name, values in shard.outputs.items()}
    # "facts." belongs to the file format: another prefix would invalidate existing caches.
    arrays |= {f"facts.{name}": values for name, values in shard.properties.items()}
    written = io.BytesIO()
    np.savez(written, **arrays)
    write_cache_file(path, written.getvalue())


def read_shard(path: Path, files: int) -> Shard | None:
    """Read the shard of a number of files; return None if there is none or, with a note on stderr, if it is damaged."""
    try:
        content = read_cache_file(path)
        return None if content is None else _parsed(content, files)
    except DamagedCacheError as error:
        say_damaged(path, error, "its features are computed again")
        return None


def _parsed(content: bytes, files: int) -> Shard:
    """Return the shard of ``files`` files that :func:`write_shard` wrote.

    Raises:
        DamagedCacheError: the content is something else.
    """
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            outputs, properties = (
                {name.removeprefix(prefix): arrays[name] for name in arrays if name.startswith(prefix)}
                for prefix in ("outputs.", "facts.")
            )
            bad = {int(position): reason for position, reason in json.loads(str(arrays["bad"])).items()}
            positions = arrays["positions"]
    except (OSError, ValueError, KeyError, AttributeError, EOFError, RecursionError, zipfile.BadZipFile) as error:
        raise DamagedCacheError(f"it has no features: {printable(error)}") from error
    if not all(position in range(files) and isinstance(reason, str) for position, reason in bad.items()):
        raise DamagedCacheError("it has no reasons by position")
    if positions.ndim != 1 or {*positions.tolist()} != {*range(files)} - bad.keys():
        raise DamagedCacheError(f"it has no rows of {files - len(bad)} files")
    rows = len(positions)
    if not all(np.ndim(values) and len(values) == rows for values in (*outputs.values(), *properties.values())):
        raise DamagedCacheError(f"its features are not those of {rows} clips")
    if rows and not (outputs and properties):
        raise DamagedCacheError("it has no features")
    return Shard(outputs, properties, positions, bad)
