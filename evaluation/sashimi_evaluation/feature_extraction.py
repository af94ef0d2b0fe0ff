"""From files to arrays: clips are read, cut to the protocol's second and judged in a stream, and nothing twice.

Results are kept on disk in shards of 256 clips, named after the content of the files and after what judged them. A run
that was stopped goes on where it was, and with ``accelerate launch`` every process takes its share of the shards.
"""

import hashlib
import json
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import soundfile
from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm import tqdm

from sashimi_diffusion.data.audio import AudioFileError, read_audio, resample
from sashimi_diffusion.data.cache import default_cache_dir, file_fingerprints
from sashimi_diffusion.data.recordings import report_bad_files
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.files import file_written_beside
from sashimi_evaluation.clips import ClipFolder
from sashimi_evaluation.metrics.signal import describe

_FORMAT = 2  # of the shards; raise it when reading, cutting or what is measured changes
_SHARD = 256
_BATCH = 32

FEATURES, PROBABILITIES = "features", "probabilities"
"""Names of the arrays that scoring needs."""

Judge = Callable[[np.ndarray], Mapping[str, np.ndarray]]
"""Takes waveforms (B, L), float32, and returns arrays with B rows, by name."""


@dataclass(frozen=True)
class Listener:
    """What hears the clips.

    Args:
        judge: the function.
        fingerprint: changes whenever ``judge`` gives other results.
        sample_rate: of the waveforms it takes, in Hz.
        seconds: their length.
    """

    judge: Judge
    fingerprint: str
    sample_rate: int
    seconds: float = 1.0

    @property
    def length(self) -> int:
        """Samples in a waveform."""
        return round(self.seconds * self.sample_rate)


@dataclass(frozen=True)
class Measured:
    """Clips with what was measured of them.

    Args:
        clips: those that could be used.
        outputs: what the judge said, arrays (n, ...) by name.
        facts: arrays (n,) by name: ``rate`` in Hz and ``channels`` of the file, and the fields of
            :class:`sashimi_evaluation.metrics.signal.Signal` at the file's own rate and whole length.
        fingerprints: of the files' content.
    """

    clips: ClipFolder
    outputs: dict[str, np.ndarray]
    facts: dict[str, np.ndarray]
    fingerprints: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.clips)

    def chosen(self, indices: np.ndarray) -> "Measured":
        """Only the clips at ``indices``, in that order."""
        return Measured(
            self.clips.chosen(indices),
            {name: values[indices] for name, values in self.outputs.items()},
            {name: values[indices] for name, values in self.facts.items()},
            tuple(self.fingerprints[i] for i in indices),
        )


def fit_length(waveform: np.ndarray, length: int) -> np.ndarray:
    """The first ``length`` samples of a waveform (L,), with zeros on the right where it is shorter.

    As the official code cuts and pads the clips it scores.
    """
    fitted = np.zeros(length, dtype=np.float32)
    fitted[: min(length, len(waveform))] = waveform[:length]
    return fitted


def measure(
    clips: ClipFolder, listener: Listener, cache_dir: Path | str | None = None, skip_bad_files: bool = False
) -> Measured:
    """Everything ``listener`` says of the clips, from the cache where it is known already.

    Args:
        clips: read one batch at a time, so memory does not grow with their number but for the results.
        listener: what hears them.
        cache_dir: where results are kept; default: ``evaluation`` in `default_cache_dir`.
        skip_bad_files: warn of files that cannot be used and go on without them.

    Raises:
        UserError: files that cannot be used, or a cache that cannot be written.
    """
    cache = Path(cache_dir).expanduser() if cache_dir is not None else default_cache_dir() / "evaluation"
    starts = range(0, len(clips), _SHARD)
    shards = [clips.files[start : start + _SHARD] for start in starts]
    state = PartialState()
    mine = range(state.process_index, len(shards), state.num_processes)
    bar = tqdm(mine, desc=f"listening to {clips.name}", unit="shard", delay=2, disable=not state.is_main_process)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        results = gather_object([(number, _shard(shards[number], listener, cache)) for number in bar])
    except OSError as error:
        raise UserError(
            f"cannot write the cache {cache}: {error.strerror or error}. Free some space there, or choose another "
            "folder with --cache-dir or the environment variable SASHIMI_CACHE"
        ) from error
    parts = [part for _, part in sorted(results, key=lambda result: result[0])]
    bad = {
        clips.files[starts[number] + position]: reason
        for number, part in enumerate(parts)
        for position, reason in part["bad"].items()
    }
    report_bad_files(bad, len(clips), clips.root, skip_bad_files)
    usable = np.asarray([i for i, file in enumerate(clips.files) if file not in bad])
    return Measured(
        clips.chosen(usable),
        _joined([part["outputs"] for part in parts]),
        _joined([part["facts"] for part in parts]),
        tuple(text for part in parts for text in part["fingerprints"]),
    )


def _joined(parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    filled = [part for part in parts if part]  # a shard without a usable file has no arrays
    return {name: np.concatenate([part[name] for part in filled]) for name in filled[0]} if filled else {}


def _shard(files: Sequence[Path], listener: Listener, cache: Path) -> dict:
    """The results of one shard: ``outputs``, ``facts``, ``fingerprints`` of its usable files, ``bad`` by position."""
    fingerprints = file_fingerprints(files, cache)
    parts = [_FORMAT, soundfile.__libsndfile_version__, listener.fingerprint, listener.sample_rate, listener.seconds]
    key = hashlib.sha256("\n".join(map(str, [*parts, *fingerprints])).encode()).hexdigest()[:32]
    path = cache / f"{key}.npz"
    found = _read_shard(path)
    if found is None:
        found = _listen(files, listener)
        _write_shard(path, found)
    usable = [text for position, text in enumerate(fingerprints) if position not in found["bad"]]
    return {**found, "fingerprints": usable}


def _listen(files: Sequence[Path], listener: Listener) -> dict:
    outputs, facts, bad, batch = [], [], {}, []
    for position, path in enumerate(files):
        try:
            waveform, fact = _read(path, listener)
        except AudioFileError as error:
            bad[position] = error.reason
            continue
        batch.append(waveform)
        facts.append(fact)
        if len(batch) == _BATCH:
            outputs.append(listener.judge(np.stack(batch)))
            batch = []
    if batch:
        outputs.append(listener.judge(np.stack(batch)))
    columns = {name: np.asarray([fact[name] for fact in facts]) for name in facts[0]} if facts else {}
    return {"outputs": _joined(outputs), "facts": columns, "bad": bad}


def _read(path: Path, listener: Listener) -> tuple[np.ndarray, dict[str, float]]:
    """A clip as the judge wants it, and its facts as it lies on disk."""
    samples = read_audio(path)
    info = soundfile.info(path)
    facts = {"rate": info.samplerate, "channels": info.channels, **asdict(describe(samples, info.samplerate))}
    # Resampling a long recording whole, for one second of it, would cost its whole length in time and memory.
    needed = samples[: round((listener.seconds + 0.1) * info.samplerate)]
    return fit_length(resample(needed, info.samplerate, listener.sample_rate), listener.length), facts


def _write_shard(path: Path, found: dict) -> None:
    arrays = {f"{group}.{name}": values for group in ("outputs", "facts") for name, values in found[group].items()}
    with file_written_beside(path) as file:
        np.savez(file, bad=np.asarray(json.dumps(found["bad"])), **arrays)


def _read_shard(path: Path) -> dict | None:
    """A shard as it was written, or None where there is none; a damaged one is said, and made again."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as arrays:
            groups = {
                group: {name.partition(".")[2]: arrays[name] for name in arrays if name.startswith(f"{group}.")}
                for group in ("outputs", "facts")
            }
            bad = {int(position): reason for position, reason in json.loads(str(arrays["bad"])).items()}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        print(f"note: the cache file {path} is damaged ({error}): it is made again", file=sys.stderr)
        return None
    return {**groups, "bad": bad}
