"""Evaluation of vocoders: generated clips against the recordings from whose mel spectrograms they were generated."""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from sashimi_diffusion.data.audio import resample
from sashimi_diffusion.data.audio_files import find_usable_audio
from sashimi_diffusion.data.decoding import decode_audio
from sashimi_diffusion.data.recordings import require_folder
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.terminal import listed, printable
from sashimi_evaluation.clips import ClipFolder
from sashimi_evaluation.metrics.cepstral_distortion import mel_cepstral_distortion
from sashimi_evaluation.metrics.intervals import Resampling
from sashimi_evaluation.metrics.metric import Better, Metric, mean_metric
from sashimi_evaluation.metrics.pitch_error import pitch_error
from sashimi_evaluation.metrics.speech_quality import WIDE, pesq, stoi
from sashimi_evaluation.metrics.stft_distance import stft_distance

MOST_APART = 0.1
"""Largest difference of the lengths of a pair in seconds; the end of the longer one is left out."""
LOWEST_RATE = 2000
"""Sample rates below this one, in Hz, have no pitch."""


@dataclass(frozen=True)
class Pair:
    """A generated clip and its recording."""

    name: str
    generated: Path
    recording: Path


@dataclass(frozen=True)
class PairErrors:
    """What was measured for one pair; NaN where something is not defined, such as the pitch of noise.

    Args:
        name: name of the pair.
        seconds: length of what was compared.
        sample_rate: rate at which it was compared, in Hz.
        stft_convergence, stft_log_magnitude, stft: see :class:`.StftDistance`.
        mcd: see :func:`.mel_cepstral_distortion`, in dB.
        squares, both, different, frames: see :class:`.PitchError`.
        mixed: whether a file has several channels, whose mean was compared.
        pesq, stoi: see :mod:`.speech_quality`; None if they were not asked for.
    """

    name: str
    seconds: float
    sample_rate: int
    stft_convergence: float
    stft_log_magnitude: float
    stft: float
    mcd: float
    squares: float
    both: int
    different: int
    frames: int
    mixed: bool
    pesq: float | None = None
    stoi: float | None = None


def find_pairs(clips: ClipFolder, reference: Path) -> tuple[list[Pair], list[Path]]:
    """Return the pair of each generated clip by its name, and the recordings without one.

    The name of a clip in a sub-folder is ``folder-name``, as ``sashimi-sample --resynthesize`` writes it; endings do
    not count.

    Raises:
        UserError: the reference has no audio or some that cannot be used, a clip has no recording, or two files of a
            folder have the same name.
    """
    root = require_folder(reference, "a folder with the recordings (wav, flac, ogg or mp3)")
    recordings = _by_name(find_usable_audio(root), root)
    generated = _by_name(clips.files, clips.root)
    alone = [name for name in generated if name not in recordings]
    if alone:
        raise UserError(
            f"{len(alone)} of {len(generated)} clips in {printable(clips.root)} have no recording of the same name in "
            f"{printable(reference)}: {listed(alone, 3)}; clips are compared with the recordings that they were "
            "generated from"
        )
    pairs = [Pair(name, path, recordings[name]) for name, path in generated.items()]
    return pairs, [path for name, path in recordings.items() if name not in generated]


def _by_name(files: Iterable[Path], root: Path) -> dict[str, Path]:
    named: dict[str, Path] = {}
    for file in files:
        name = file.relative_to(root).with_suffix("").as_posix().replace("/", "-")
        if name in named:
            raise UserError(f"{printable(named[name])} and {printable(file)} have the same name: remove one of them")
        named[name] = file
    return named


def measure_pairs(pairs: Sequence[Pair], title: str, speech: Sequence[str] = ()) -> list[PairErrors]:
    """Measure all pairs of one set.

    Args:
        pairs: the pairs.
        title: title of the progress bar.
        speech: which of "pesq" and "stoi" to compute as well.

    Raises:
        UserError: a file cannot be used, or the lengths of a pair differ.
    """
    bar = tqdm(pairs, desc=title, unit="pair", leave=False, disable=not sys.stderr.isatty())
    return [measure_pair(pair, speech) for pair in bar]


def measure_pair(pair: Pair, speech: Sequence[str] = ()) -> PairErrors:
    """Measure one pair at the lower one of its two sample rates, see :func:`measure_pairs`."""
    generated, recording, rate, mixed = _read(pair)
    distance, pitch = stft_distance(generated, recording), pitch_error(generated, recording, rate)
    return PairErrors(
        name=pair.name,
        seconds=len(recording) / rate,
        sample_rate=rate,
        stft_convergence=distance.convergence,
        stft_log_magnitude=distance.log_magnitude,
        stft=distance.total,
        mcd=mel_cepstral_distortion(generated, recording, rate),
        squares=pitch.squares,
        both=pitch.both,
        different=pitch.different,
        frames=pitch.frames,
        mixed=mixed,
        pesq=pesq(generated, recording, rate) if "pesq" in speech else None,
        stoi=stoi(generated, recording, rate) if "stoi" in speech else None,
    )


def _read(pair: Pair) -> tuple[np.ndarray, np.ndarray, int, bool]:
    """Return the generated waveform and the recording, with the same length and rate, the rate, and ``mixed``."""
    generated, recording = decode_audio(pair.generated), decode_audio(pair.recording)
    rate = min(generated.sample_rate, recording.sample_rate)
    if rate < LOWEST_RATE:
        raise UserError(f"{printable(pair.generated)}: a rate of {rate} Hz is too low, expected at least {LOWEST_RATE}")
    mine, real = (resample(one.samples, one.sample_rate, rate) for one in (generated, recording))
    if abs(len(mine) - len(real)) > MOST_APART * rate:
        raise UserError(
            f"{printable(pair.generated)} has {len(mine) / rate:.2f} s, {printable(pair.recording)} has "
            f"{len(real) / rate:.2f} s: expected a clip that was generated from this recording, up to {MOST_APART:g} s "
            "longer or shorter"
        )
    length = min(len(mine), len(real))
    return mine[:length], real[:length], rate, max(generated.channels, recording.channels) > 1


def vocoder_metrics(errors: Sequence[PairErrors], resampling: Resampling) -> list[Metric]:
    """Return the metrics of one set with their intervals over the pairs.

    Distances, distortion, PESQ and STOI are means over the pairs that have a value. The pitch error is the root mean
    square over all frames that are voiced in both clips of a pair, and the voicing error the share of all frames; their
    intervals resample pairs, too. A single pair has no intervals.

    Args:
        errors: the pairs of the set, at least one.
        resampling: settings of the confidence intervals.
    """

    def mean(name: str, title: str, better: Better) -> Metric:
        values = np.array([getattr(one, name) for one in errors], dtype=float)
        defined = np.isfinite(values)
        note = "" if defined.all() else f"of the {int(defined.sum())} of {len(values)} pairs for which it is defined"
        if not defined.any():
            return Metric(name, title, None, better=better, note="not defined for any pair")
        return replace(mean_metric(name, title, values[defined], resampling), better=better, note=note)

    sums = np.array([(one.squares, one.both, one.different, one.frames) for one in errors])
    metrics = [
        mean("stft", "Multi-resolution STFT distance", "lower"),
        mean("stft_convergence", "Spectral convergence", "lower"),
        mean("stft_log_magnitude", "Log-magnitude distance (nats)", "lower"),
        mean("mcd", "Mel-cepstral distortion (dB)", "lower"),
        _pitch_metric(sums, resampling),
        _voicing_metric(sums, resampling),
    ]
    if errors[0].pesq is not None:
        bands = sorted({"wide band" if one.sample_rate >= WIDE else "narrow band" for one in errors})
        metrics.append(mean("pesq", f"PESQ, {' and '.join(bands)}", "higher"))
    if errors[0].stoi is not None:
        metrics.append(mean("stoi", "STOI", "higher"))
    return metrics if len(errors) > 1 else [replace(metric, interval=None) for metric in metrics]


def _pitch_metric(sums: np.ndarray, resampling: Resampling) -> Metric:
    title = "Pitch, root mean square error (cents)"
    voiced = sums[sums[:, 1] > 0]
    if not len(voiced):
        return Metric("f0_rmse", title, None, better="lower", note="no frame is voiced in both clips of a pair")

    def statistic(rows: np.ndarray) -> float:
        return float(np.sqrt(rows[:, 0].sum() / rows[:, 1].sum()))

    return Metric("f0_rmse", title, statistic(voiced), resampling.interval(statistic, voiced, low=0.0), "lower")


def _voicing_metric(sums: np.ndarray, resampling: Resampling) -> Metric:
    def statistic(rows: np.ndarray) -> float:
        return float(rows[:, 2].sum() / rows[:, 3].sum())

    interval = resampling.interval(statistic, sums, low=0.0, high=1.0)
    return Metric("voicing_error", "Frames with wrong voicing", statistic(sums), interval, "lower")
