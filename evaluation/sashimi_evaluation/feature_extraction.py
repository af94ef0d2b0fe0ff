"""Feature extraction: read the clips of a folder, run a network on them, and cache the results.

Results are cached on disk in shards of 256 clips, or of 16 recordings that are cut into excerpts. The name of a shard
depends on the content of the files, on the network and on the windows. An interrupted run continues where it stopped,
and with ``accelerate launch`` the processes divide the shards.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm import tqdm

from sashimi_diffusion.cache_files import default_cache_dir
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
from sashimi_evaluation.excerpts import MOST_EXCERPTS, Windows, excerpts
from sashimi_evaluation.feature_shards import Arrays, Shard, read_shard, write_shard
from sashimi_evaluation.metrics.harmonics import harmonic_properties
from sashimi_evaluation.metrics.music import music_properties
from sashimi_evaluation.metrics.signal import signal_properties
from sashimi_evaluation.metrics.spectrum import clip_spectrum
from sashimi_evaluation.preparation import Preparation, fit_length

_FORMAT = 7  # of the shards; increase it when reading, cropping, the properties or the files change
_SHARD = 256  # clips per shard
_RECORDINGS = 16  # recordings per shard if they are cut into excerpts
_BATCH = 32  # clips per call of the network
_BATCH_SAMPLES = 2**23  # fewer clips per call if they are so long that these have more samples
_FILTER_SECONDS = 0.1  # longer than the filter of the resampler

PROPERTY_SECONDS = 10.0
"""Duration of a file that is read for its properties; a small file may unpack to hours."""
FEATURES, PROBABILITIES = "features", "probabilities"
"""Names of the arrays that the metrics need."""


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
    """Clips, or excerpts of recordings, with the outputs of a network and the properties of their waveforms.

    Args:
        clips: the usable clips; with excerpts, the file of each row, so that a recording occurs several times.
        outputs: outputs of the network, arrays (n, ...) by name.
        properties: arrays (n, ...) by name: ``rate`` in Hz after the preparation, ``channels`` of the file, ``peak``,
            the largest absolute sample of the file or excerpt, ``start`` in the file in seconds, ``gain``, the factor
            of the preparation, the fields of
            :class:`sashimi_evaluation.metrics.signal.SignalProperties` and
            :class:`sashimi_evaluation.metrics.harmonics.HarmonicProperties`, those of
            :class:`sashimi_evaluation.metrics.music.MusicProperties` if asked for, and ``spectrum``, see
            :func:`sashimi_evaluation.metrics.spectrum.clip_spectrum`. They are computed from the first ten seconds of
            the prepared clip or excerpt.
        fingerprints: hash of the content of each file.
        recordings: number of the recording of each row, int64 (n,), if the rows are excerpts; None: they are clips.
    """

    clips: ClipFolder
    outputs: Arrays
    properties: Arrays
    fingerprints: tuple[str, ...]
    recordings: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.clips)

    @property
    def files(self) -> int:
        """Number of files."""
        return len(set(self.clips.files))

    def select(self, indices: np.ndarray) -> "ClipFeatures":
        """Return only the rows at ``indices``, in that order."""
        return ClipFeatures(
            self.clips.select(indices),
            {name: values[indices] for name, values in self.outputs.items()},
            {name: values[indices] for name, values in self.properties.items()},
            tuple(self.fingerprints[i] for i in indices),
            None if self.recordings is None else self.recordings[indices],
        )

    def whole(self) -> ClipFolder:
        """Return the clips; with excerpts, each file once."""
        if self.recordings is None:
            return self.clips
        first = {file: index for index, file in reversed(list(enumerate(self.clips.files)))}
        return self.clips.select(sorted(first.values()))


def extract_clip_features(
    clips: ClipFolder,
    network: ClipNetwork,
    cache_dir: Path | str | None = None,
    skip_bad_files: bool = False,
    windows: Windows | None = None,
    music: bool = False,
) -> ClipFeatures:
    """Run a network on clips or on excerpts of them, or return its cached outputs.

    Args:
        clips: the clips. They are prepared as their ``preparation`` says, and read in batches, so memory grows only
            with the size of the results.
        network: the network.
        cache_dir: folder of the cache; default: ``evaluation`` in
            :func:`~sashimi_diffusion.cache_files.default_cache_dir`.
        skip_bad_files: warn about unusable files and continue without them.
        windows: how the clips are cut into excerpts; None: each clip is one row, with the beginning that the network
            takes. Long recordings are read block by block.
        music: compute the properties of musical notes.

    Raises:
        UserError: a file cannot be used, the cache cannot be written, there are more than ``MOST_EXCERPTS`` excerpts,
            or every clip is shorter than the window.
    """
    cache = default_cache_dir() / "evaluation" if cache_dir is None else expanded(cache_dir)
    size = _SHARD if windows is None else _RECORDINGS
    starts = range(0, len(clips), size)
    shards = [clips.files[start : start + size] for start in starts]
    state = PartialState()
    assigned = range(state.process_index, len(shards), state.num_processes)
    bar = tqdm(
        assigned, desc=f"features of {printable(clips.name)}", unit="shard", delay=2, disable=not state.is_main_process
    )
    advice = "free some space there, or choose another folder with --cache-dir or the variable SASHIMI_CACHE"
    reading = _Reading(network, clips.preparation, windows, music)
    found, rows = [], 0
    with writing(f"the cache {printable(cache)}", advice):
        cache.mkdir(parents=True, exist_ok=True)
        for number in bar:
            found.append((number, *_cached_shard(shards[number], reading, cache)))
            rows += len(found[-1][1].positions)
            _check_number(rows, clips)
        results = sorted(gather_object(found), key=lambda result: result[0])
    bad = {
        clips.files[starts[number] + position]: reason
        for number, shard, _ in results
        for position, reason in shard.bad.items()
    }
    report_bad_files(bad, len(clips), clips.root, skip_bad_files, cache)
    indices = np.concatenate([starts[number] + shard.positions for number, shard, _ in results])
    _check_number(len(indices), clips)
    properties = _concatenated([shard.properties for _, shard, _ in results])
    if windows is not None:
        _check_durations(properties["seconds"], clips, windows)
    fingerprints = [text for _, _, own in results for text in own]
    return ClipFeatures(
        clips.select(indices),
        _concatenated([shard.outputs for _, shard, _ in results]),
        properties,
        tuple(fingerprints[index] for index in indices),
        None if windows is None else indices,
    )


def _check_number(rows: int, clips: ClipFolder) -> None:
    if rows > MOST_EXCERPTS:
        raise UserError(f"{printable(clips.name)} has more than {MOST_EXCERPTS:,} excerpts: choose a longer --hop")


def _check_durations(seconds: np.ndarray, clips: ClipFolder, windows: Windows) -> None:
    """Refuse windows for which every clip would be padded, because the networks would mostly hear the padding."""
    if seconds.max() < windows.seconds - 1e-3:
        raise UserError(
            f"--window {windows.seconds:g} is longer than every recording of {printable(clips.name)} "
            f"(the longest has {seconds.max():.4g} s): choose a shorter window"
        )


def _concatenated(parts: Sequence[Mapping[str, np.ndarray]]) -> Arrays:
    filled = [part for part in parts if part]  # a shard without a usable file has no arrays
    for name in filled[0] if filled else ():
        shapes = sorted({part[name].shape[1:] for part in filled})
        if len(shapes) > 1:
            raise UserError(f"the network returns {name} of the shapes {shapes[0]} and {shapes[1]}, expected one shape")
    return {name: np.concatenate([part[name] for part in filled]) for name in filled[0]} if filled else {}


@dataclass(frozen=True)
class _Reading:
    """What is done to files: how they are cut and prepared, the network that is run on the result, and properties."""

    network: ClipNetwork
    preparation: Preparation
    windows: Windows | None
    music: bool

    @property
    def key(self) -> list[object]:
        """What the results depend on, besides the content of the files."""
        network = self.network
        parts = [_FORMAT, soundfile.__libsndfile_version__, network.fingerprint, network.sample_rate, network.seconds]
        return [*parts, repr(self.preparation), repr(self.windows), self.music]

    @property
    def batch(self) -> int:
        """Clips per call of the network."""
        return max(1, min(_BATCH, _BATCH_SAMPLES // self.network.length))

    def rows(self, path: Path) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
        """Yield the input of the network, float32 (L,), and the properties of each row of a file."""
        if self.windows is None:
            longest = max(PROPERTY_SECONDS, self.network.seconds + _FILTER_SECONDS)
            samples, rate, channels = read_clip(path, longest)
            facts = {"channels": channels, "peak": peak_of(samples), "start": 0.0, "gain": 1.0}
            yield self._row(*self.preparation.prepare(samples, rate, longest), facts)
            return
        for excerpt in excerpts(path, self.windows, self.preparation):
            facts = {"channels": excerpt.channels, "peak": excerpt.peak, "start": excerpt.start, "gain": excerpt.gain}
            yield self._row(excerpt.samples, excerpt.sample_rate, facts)

    def _row(self, samples: np.ndarray, rate: int, facts: Mapping[str, float]) -> tuple[np.ndarray, dict[str, Any]]:
        """Return the input of the network, and the properties of a prepared clip or excerpt, float32 (L,)."""
        beginning = samples[: round(PROPERTY_SECONDS * rate)]
        properties = {
            **{"rate": rate, **facts, "spectrum": clip_spectrum(beginning, rate)},
            **asdict(signal_properties(beginning, rate)),
            **asdict(harmonic_properties(beginning, rate)),
            **(asdict(music_properties(beginning, rate)) if self.music else {}),
        }
        properties["seconds"] = len(samples) / rate
        # Cropping first saves the resampling of samples that are not used.
        cropped = samples[: round((self.network.seconds + _FILTER_SECONDS) * rate)]
        return fit_length(resample(cropped, rate, self.network.sample_rate), self.network.length), properties


def _cached_shard(files: Sequence[Path], reading: _Reading, cache: Path) -> tuple[Shard, list[str]]:
    """Return one shard and the fingerprints of all its files."""
    fingerprints = file_fingerprints(files, cache)
    key = hashlib.sha256("\n".join(map(str, [*reading.key, *fingerprints])).encode()).hexdigest()[:32]
    path = cache / f"{key}.npz"
    shard = read_shard(path, len(files))
    if shard is None:
        remove_abandoned(cache)
        shard = _compute_shard(files, reading)
        write_shard(path, shard)
    return shard, fingerprints


def _compute_shard(files: Sequence[Path], reading: _Reading) -> Shard:
    outputs: list[Mapping[str, np.ndarray]] = []
    properties: list[dict[str, Any]] = []
    positions: list[int] = []  # of the file of each row
    bad: dict[int, str] = {}
    batch: list[np.ndarray] = []
    for position, path in enumerate(files):
        try:
            for waveform, clip_properties in reading.rows(path):
                batch.append(waveform)
                properties.append(clip_properties)
                positions.append(position)
                if len(batch) == reading.batch:
                    outputs.append(reading.network.compute(np.stack(batch)))
                    batch = []
                if len(positions) > MOST_EXCERPTS:
                    raise UserError(
                        f"{printable(path)} and the files before it have more than {MOST_EXCERPTS:,} excerpts: "
                        "choose a longer --hop, or fewer recordings"
                    )
        except AudioFileError as error:
            bad[position] = error.reason
    if batch:
        outputs.append(reading.network.compute(np.stack(batch)))
    arrays = _concatenated(outputs)
    for row, position in enumerate(positions):
        if not all(np.isfinite(values[row]).all() for values in arrays.values()):
            bad.setdefault(position, "the features of its audio are not finite")
    kept = [row for row, position in enumerate(positions) if position not in bad]
    columns = {name: np.asarray([properties[row][name] for row in kept]) for name in (properties[0] if kept else {})}
    usable = {name: values[kept] for name, values in arrays.items()} if kept else {}
    return Shard(usable, columns, np.asarray([positions[row] for row in kept], dtype=np.int64), bad)
