"""Feature extraction: read the clips of a folder, run a network on them, and cache the results.

Results are cached on disk in shards of 256 clips. The name of a shard depends on the content of the files and on the
network. An interrupted run continues where it stopped, and with ``accelerate launch`` the processes divide the shards.
"""

import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm import tqdm

from sashimi_diffusion.cache_files import (
    DamagedCacheError,
    default_cache_dir,
    read_cache_file,
    say_damaged,
    write_cache_file,
)
from sashimi_diffusion.data.audio import resample
from sashimi_diffusion.data.decoding import AudioFileError
from sashimi_diffusion.data.fingerprints import file_fingerprints
from sashimi_diffusion.data.levels import peak_of
from sashimi_diffusion.data.recordings import report_bad_files
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.files import remove_abandoned, writing
from sashimi_diffusion.paths import expanded
from sashimi_diffusion.terminal import printable
from sashimi_evaluation.clips import ClipFolder, read_clip
from sashimi_evaluation.metrics.harmonics import harmonic_properties
from sashimi_evaluation.metrics.signal import signal_properties
from sashimi_evaluation.metrics.spectrum import clip_spectrum
from sashimi_evaluation.preparation import Preparation, fit_length

_FORMAT = 5  # of the shards; increase it when reading, cropping, the properties or the files change
_SHARD = 256  # clips per shard
_BATCH = 32  # clips per call of the network
_FILTER_SECONDS = 0.1  # longer than the filter of the resampler

PROPERTY_SECONDS = 10.0
"""Duration of a file that is read for its properties; a small file may unpack to hours."""
FEATURES, PROBABILITIES = "features", "probabilities"
"""Names of the arrays that the metrics need."""

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class ClipNetwork:
    """A network that is run on clips.

    Args:
        compute: function that maps waveforms, float32 (B, L), to arrays (B, ...) by name.
        fingerprint: text that changes whenever the results of ``compute`` for the same waveforms change.
        sample_rate: sample rate of the waveforms in Hz.
        seconds: duration of the waveforms in seconds.
    """

    compute: Callable[[np.ndarray], Mapping[str, np.ndarray]]
    fingerprint: str
    sample_rate: int
    seconds: float = 1.0

    @property
    def length(self) -> int:
        """Number of samples L of a waveform."""
        return round(self.seconds * self.sample_rate)


@dataclass(frozen=True)
class ClipFeatures:
    """Clips with the outputs of a network and the properties of their waveforms.

    Args:
        clips: the usable clips.
        outputs: outputs of the network, arrays (n, ...) by name.
        properties: arrays (n, ...) by name: ``rate`` in Hz after the preparation, ``channels`` of the file, ``peak``,
            the largest absolute sample of the file, the fields of
            :class:`sashimi_evaluation.metrics.signal.SignalProperties` and
            :class:`sashimi_evaluation.metrics.harmonics.HarmonicProperties`, and ``spectrum``, see
            :func:`sashimi_evaluation.metrics.spectrum.clip_spectrum`. They are computed from the first ten seconds of
            the prepared clip.
        fingerprints: hash of the content of each file.
    """

    clips: ClipFolder
    outputs: Arrays
    properties: Arrays
    fingerprints: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.clips)

    def select(self, indices: np.ndarray) -> "ClipFeatures":
        """Return only the clips at ``indices``, in that order."""
        return ClipFeatures(
            self.clips.select(indices),
            {name: values[indices] for name, values in self.outputs.items()},
            {name: values[indices] for name, values in self.properties.items()},
            tuple(self.fingerprints[i] for i in indices),
        )


@dataclass(frozen=True)
class _Shard:
    """Results of one shard.

    Args:
        outputs: outputs of the network for the usable files.
        properties: properties of the usable files.
        bad: for each unusable file, its position in the shard and the reason.
    """

    outputs: Arrays
    properties: Arrays
    bad: dict[int, str]


def extract_clip_features(
    clips: ClipFolder, network: ClipNetwork, cache_dir: Path | str | None = None, skip_bad_files: bool = False
) -> ClipFeatures:
    """Run a network on clips, or return its cached outputs.

    Args:
        clips: the clips. They are prepared as their ``preparation`` says, and read in batches, so memory grows only
            with the size of the results.
        network: the network.
        cache_dir: folder of the cache; default: ``evaluation`` in
            :func:`~sashimi_diffusion.cache_files.default_cache_dir`.
        skip_bad_files: warn about unusable files and continue without them.

    Raises:
        UserError: a file cannot be used, or the cache cannot be written.
    """
    cache = default_cache_dir() / "evaluation" if cache_dir is None else expanded(cache_dir)
    starts = range(0, len(clips), _SHARD)
    shards = [clips.files[start : start + _SHARD] for start in starts]
    state = PartialState()
    assigned = range(state.process_index, len(shards), state.num_processes)
    bar = tqdm(
        assigned, desc=f"features of {printable(clips.name)}", unit="shard", delay=2, disable=not state.is_main_process
    )
    advice = "free some space there, or choose another folder with --cache-dir or the variable SASHIMI_CACHE"
    with writing(f"the cache {printable(cache)}", advice):
        cache.mkdir(parents=True, exist_ok=True)
        gathered = gather_object(
            [(number, *_cached_shard(shards[number], network, clips.preparation, cache)) for number in bar]
        )
    results = sorted(gathered, key=lambda result: result[0])
    bad = {
        clips.files[starts[number] + position]: reason
        for number, shard, _ in results
        for position, reason in shard.bad.items()
    }
    report_bad_files(bad, len(clips), clips.root, skip_bad_files, cache)
    usable = np.asarray([i for i, file in enumerate(clips.files) if file not in bad])
    return ClipFeatures(
        clips.select(usable),
        _concatenated([shard.outputs for _, shard, _ in results]),
        _concatenated([shard.properties for _, shard, _ in results]),
        tuple(text for _, _, fingerprints in results for text in fingerprints),
    )


def _concatenated(parts: Sequence[Mapping[str, np.ndarray]]) -> Arrays:
    filled = [part for part in parts if part]  # a shard without a usable file has no arrays
    for name in filled[0] if filled else ():
        shapes = sorted({part[name].shape[1:] for part in filled})
        if len(shapes) > 1:
            raise UserError(f"the network returns {name} of the shapes {shapes[0]} and {shapes[1]}, expected one shape")
    return {name: np.concatenate([part[name] for part in filled]) for name in filled[0]} if filled else {}


def _cached_shard(
    files: Sequence[Path], network: ClipNetwork, preparation: Preparation, cache: Path
) -> tuple[_Shard, list[str]]:
    """Return one shard and the fingerprints of its usable files."""
    fingerprints = file_fingerprints(files, cache)
    parts = [_FORMAT, soundfile.__libsndfile_version__, network.fingerprint, network.sample_rate, network.seconds]
    parts.append(repr(preparation))
    key = hashlib.sha256("\n".join(map(str, [*parts, *fingerprints])).encode()).hexdigest()[:32]
    path = cache / f"{key}.npz"
    shard = _read_shard(path, len(files))
    if shard is None:
        remove_abandoned(cache)
        shard = _compute_shard(files, network, preparation)
        _write_shard(path, shard)
    return shard, [text for position, text in enumerate(fingerprints) if position not in shard.bad]


def _compute_shard(files: Sequence[Path], network: ClipNetwork, preparation: Preparation) -> _Shard:
    outputs: list[Mapping[str, np.ndarray]] = []
    properties: dict[int, dict[str, Any]] = {}  # by position
    bad: dict[int, str] = {}
    batch: list[np.ndarray] = []
    for position, path in enumerate(files):
        try:
            waveform, clip_properties = _read_clip(path, network, preparation)
        except AudioFileError as error:
            bad[position] = error.reason
            continue
        batch.append(waveform)
        properties[position] = clip_properties
        if len(batch) == _BATCH:
            outputs.append(network.compute(np.stack(batch)))
            batch = []
    if batch:
        outputs.append(network.compute(np.stack(batch)))
    arrays = _concatenated(outputs)
    for row, position in enumerate(properties):
        if not all(np.isfinite(values[row]).all() for values in arrays.values()):
            bad[position] = "the features of its audio are not finite"
    kept = [row for row, position in enumerate(properties) if position not in bad]
    rows = [own for position, own in properties.items() if position not in bad]
    columns = {name: np.asarray([own[name] for own in rows]) for name in (rows[0] if rows else {})}
    return _Shard({name: values[kept] for name, values in arrays.items()} if rows else {}, columns, bad)


def _read_clip(path: Path, network: ClipNetwork, preparation: Preparation) -> tuple[np.ndarray, dict[str, Any]]:
    """Return the input of the network, float32 (L,), and the properties of the clip."""
    used = network.seconds + _FILTER_SECONDS
    longest = max(PROPERTY_SECONDS, used)
    samples, rate, channels = read_clip(path, longest)
    peak = peak_of(samples)
    samples, rate = preparation.prepare(samples, rate, longest)
    properties = {
        **{"rate": rate, "channels": channels, "peak": peak, "spectrum": clip_spectrum(samples, rate)},
        **asdict(signal_properties(samples, rate)),
        **asdict(harmonic_properties(samples, rate)),
    }
    # Cropping first saves the resampling of samples that are not used.
    cropped = samples[: round(used * rate)]
    return fit_length(resample(cropped, rate, network.sample_rate), network.length), properties


def _write_shard(path: Path, shard: _Shard) -> None:
    arrays: dict[str, Any] = {"bad": np.asarray(json.dumps(shard.bad))}
    arrays |= {f"outputs.{name}": values for name, values in shard.outputs.items()}
    # "facts." belongs to the file format: another prefix would invalidate existing caches.
    arrays |= {f"facts.{name}": values for name, values in shard.properties.items()}
    written = io.BytesIO()
    np.savez(written, **arrays)
    write_cache_file(path, written.getvalue())


def _read_shard(path: Path, files: int) -> _Shard | None:
    """Read the shard of a number of files; return None if there is none or, with a note on stderr, if it is damaged."""
    try:
        content = read_cache_file(path)
        return None if content is None else _parsed(content, files)
    except DamagedCacheError as error:
        say_damaged(path, error, "its features are computed again")
        return None


def _parsed(content: bytes, files: int) -> _Shard:
    """Return the shard of ``files`` files that :func:`_write_shard` wrote.

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
    except (OSError, ValueError, KeyError, AttributeError, EOFError, RecursionError, zipfile.BadZipFile) as error:
        raise DamagedCacheError(f"it has no features: {printable(error)}") from error
    usable = files - len(bad)
    if not all(position in range(files) and isinstance(reason, str) for position, reason in bad.items()):
        raise DamagedCacheError("it has no reasons by position")
    if not all(np.ndim(values) and len(values) == usable for values in (*outputs.values(), *properties.values())):
        raise DamagedCacheError(f"its features are not those of {usable} clips")
    if usable and not (outputs and properties):
        raise DamagedCacheError("it has no features")
    return _Shard(outputs, properties, bad)
