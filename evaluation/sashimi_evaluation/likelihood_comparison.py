"""Bits per sample of the same recordings under several pipelines, diffusion and autoregressive."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sashimi_diffusion import likelihood
from sashimi_diffusion.data.audio import at_rate
from sashimi_diffusion.data.audio_files import find_usable_audio
from sashimi_diffusion.data.cache import rms_of
from sashimi_diffusion.data.decoding import decode_audio
from sashimi_diffusion.data.names import FOLDER, field_names, read_fields, select
from sashimi_diffusion.data.recordings import require_folder
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.likelihood import BitsPerSample, Quantization
from sashimi_diffusion.pipelines import AutoPipeline, SashimiAutoregressivePipeline, resolve_pipeline
from sashimi_diffusion.pipelines.labels import known_labels
from sashimi_diffusion.terminal import printable
from sashimi_diffusion.training.examples import spread_evenly
from sashimi_evaluation.metrics.intervals import Interval, Resampling
from sashimi_evaluation.preparation import training_level

COMPARABLE = (
    "These bits per sample are comparable with each other, because they belong to the same samples of the same "
    "recordings in the same quantization, and those of a diffusion pipeline are an upper bound, up to the error of the "
    "estimate; they are not comparable with bits per sample at another rate, quantization or selection of recordings."
)


@dataclass(frozen=True)
class Settings:
    """Settings of a comparison.

    Args:
        quantization: its kind; None is that of the autoregressive pipelines, and 16-bit PCM without one.
        clips: largest number of recordings, evenly spread over all of them.
        seconds: longest part of a recording, from its beginning; None is the training length of the diffusion
            pipelines.
        rms: level to which the recordings are scaled for the diffusion pipelines; None is that on their cards.
        bound_draws: draws of the variational bound; 0: no bound.
        resampling: bootstrap of the intervals; its seed is also that of the draws.
        estimator: arguments of :func:`sashimi_diffusion.likelihood.bits_per_sample`.
    """

    quantization: str | None = None
    clips: int = 20
    seconds: float | None = None
    rms: float | None = None
    bound_draws: int = 16
    resampling: Resampling = field(default_factory=Resampling)
    estimator: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Recording:
    """A recording, or its beginning.

    Args:
        file: the file.
        fields: fields of its name.
        waveform: float64 (L,).
        rms: root mean square of the whole recording.
    """

    file: Path
    fields: Mapping[str, str]
    waveform: np.ndarray
    rms: float


@dataclass(frozen=True)
class PipelineBits:
    """Bits per sample of all recordings under one pipeline.

    Args:
        name: name of the pipeline.
        kind: "diffusion" or "autoregressive".
        rms: level to which the recordings were scaled; None: not at all.
        bits, errors: bits per sample of each recording and their standard errors, float64 (recordings,).
        bound: the variational bound of each recording, or None.
    """

    name: str
    kind: str
    rms: float | None
    bits: np.ndarray
    errors: np.ndarray
    bound: np.ndarray | None


@dataclass(frozen=True)
class Comparison:
    """Bits per sample of recordings under several pipelines.

    Args:
        rate: sample rate in Hz.
        quantization: of the recordings.
        recordings: the recordings.
        pipelines: a result for each pipeline.
        notes: what was left out or changed.
    """

    rate: int
    quantization: Quantization
    recordings: Sequence[Recording]
    pipelines: Sequence[PipelineBits]
    notes: Sequence[str]

    @property
    def lengths(self) -> np.ndarray:
        """Samples of each recording, float64 (recordings,)."""
        return np.array([len(recording.waveform) for recording in self.recordings], dtype=np.float64)

    def mean(self, values: np.ndarray) -> float:
        """Return the mean of values per sample over all samples of all recordings."""
        return float((values * self.lengths).sum() / self.lengths.sum())

    def interval(self, values: np.ndarray, resampling: Resampling) -> Interval | None:
        """Return the interval of :meth:`mean` over the recordings; None with a single recording."""
        if len(values) < 2:
            return None
        rows = np.stack([values * self.lengths, self.lengths], axis=1)
        return resampling.interval(lambda chosen: float(chosen[:, 0].sum() / chosen[:, 1].sum()), rows)

    def standard_error(self, pipeline: PipelineBits) -> float:
        """Return the standard error of the mean of the estimates, without that of the choice of recordings."""
        return float(np.sqrt(((pipeline.errors * self.lengths) ** 2).sum()) / self.lengths.sum())


def compare_likelihoods(
    folder: Path,
    pipelines: Sequence[str],
    settings: Settings,
    pattern: str | None = None,
    where: Mapping[str, object] | None = None,
    device: torch.device | str = "cpu",
    progress: Callable[[Sequence[Recording]], Any] = lambda recordings: recordings,
) -> Comparison:
    """Return the bits per sample of the recordings in a folder under several pipelines.

    Args:
        folder: the recordings.
        pipelines: names or folders of pipelines with the same sample rate.
        settings: what is computed.
        pattern: pattern of the file names; its fields ``label`` and ``speaker`` give the labels of the recordings.
            Without ``label``, the first sub-folder is the class.
        where: use only recordings with these values of the fields.
        device: device of the pipelines.
        progress: wraps the recordings while they are evaluated.

    Raises:
        UserError: pipelines that have no samples in common, recordings that cannot be used, or labels that a pipeline
            needs and the recordings do not have.
    """
    loaded = {name: AutoPipeline.from_pretrained(name).to(device) for name in dict.fromkeys(pipelines)}
    for pipe in loaded.values():
        pipe.set_progress_bar_config(disable=True)
    rates = {name: pipe.model.config.sample_rate for name, pipe in loaded.items()}
    if len(set(rates.values())) > 1:
        shown = ", ".join(f"{printable(name)} {rate} Hz" for name, rate in rates.items())
        raise UserError(f"the pipelines have different sample rates ({shown}): compare pipelines of one rate")
    for name, pipe in loaded.items():
        if (channels := pipe.model.config.get("in_channels", 1)) != 1:
            raise UserError(f"{printable(name)} has {channels} channels: likelihoods are compared for one channel")
    rate, quantization = next(iter(rates.values())), _quantization(loaded, settings.quantization)
    recordings, notes = _recordings(folder, loaded, settings, rate, pattern, where)
    results = [_bits(name, pipe, recordings, quantization, settings, progress) for name, pipe in loaded.items()]
    return Comparison(rate, quantization, recordings, results, notes)


def input_files(recordings: Path, pipelines: Sequence[str]) -> list[Path]:
    """Return the files that a comparison reads: the recordings, and everything in the folders of the pipelines."""
    folders = [recordings, *(resolve_pipeline(name) for name in pipelines)]
    return [path for folder in folders for path in folder.rglob("*")]


def _quantization(loaded: Mapping[str, Any], kind: str | None) -> Quantization:
    tokens = {name: likelihood.quantization_of(pipe) for name, pipe in loaded.items() if _is_autoregressive(pipe)}
    if len(set(tokens.values())) > 1:
        shown = ", ".join(f"{printable(name)} {own}" for name, own in tokens.items())
        raise UserError(f"the autoregressive pipelines have different quantizations ({shown}): compare those of one")
    own = next(iter(tokens.values()), None)
    if own is None:
        return Quantization() if kind in (None, "pcm") else Quantization(str(kind), 8)
    if kind not in (None, own.kind):
        raise UserError(
            f"the quantization {kind} was asked for, but {printable(next(iter(tokens)))} has {own}: leave it out"
        )
    return own


def _recordings(
    folder: Path,
    loaded: Mapping[str, Any],
    settings: Settings,
    rate: int,
    pattern: str | None,
    where: Mapping[str, object] | None,
) -> tuple[list[Recording], list[str]]:
    """Return the beginnings of the chosen recordings, and notes on what was changed."""
    root = require_folder(folder, "a folder with recordings (wav, flac, ogg or mp3)")
    files = find_usable_audio(root)
    fields, misnamed = read_fields(files, root, pattern)
    for path, why in misnamed.items():
        raise UserError(f"cannot use {printable(path)}: {why}")
    kept = select(fields, where or {}, field_names(pattern), "--where")
    kept = [kept[index] for index in spread_evenly(len(kept), settings.clips)]
    denoisers = [pipe.model for pipe in loaded.values() if not _is_autoregressive(pipe)]
    multiple = math.lcm(1, *(model.length_multiple for model in denoisers))
    longest = math.inf if settings.seconds is None else settings.seconds * rate
    if settings.seconds is None:
        longest = min((model.config.sample_size for model in denoisers), default=math.inf)
    recordings, short, cut, resampled = [], 0, 0, 0
    for file in kept:
        decoded = decode_audio(file)
        resampled += decoded.sample_rate != rate
        samples = at_rate(decoded, rate, file)
        length = int(min(len(samples), longest)) // multiple * multiple
        if length < 2:
            short += 1
            continue
        cut += len(samples) - length >= multiple
        waveform = samples[:length].astype(np.float64)
        if waveform.min() == waveform.max():
            what = "has the same value throughout" if waveform.any() else "is silent"
            raise UserError(f"{printable(file)} {what}: leave it out")
        recordings.append(Recording(file, fields[file], waveform, rms_of(samples)))
    if not recordings:
        raise UserError(f"no recording in {printable(folder)} has {multiple} samples or more: give longer recordings")
    notes = [f"{len(recordings)} of {len(files)} recordings"] if len(recordings) < len(files) else []
    notes += [f"{resampled} recordings were resampled to {rate} Hz, and quantized again"] if resampled else []
    if cut:
        notes.append(f"{cut} recordings were cut to their first {int(longest) // multiple * multiple} samples")
    notes += [f"{short} recordings with fewer than {multiple} samples were left out"] if short else []
    return recordings, notes


def _bits(
    name: str,
    pipe: Any,
    recordings: Sequence[Recording],
    quantization: Quantization,
    settings: Settings,
    progress: Callable[[Sequence[Recording]], Any],
) -> PipelineBits:
    """Return the bits per sample of all recordings under one pipeline."""
    if _is_autoregressive(pipe):
        exact = [likelihood.token_bits_per_sample(pipe, one.waveform) for one in progress(recordings)]
        return PipelineBits(name, "autoregressive", None, *_columns(exact), None)
    if pipe.model.config.get("mel_channels") is not None:
        raise UserError(f"{printable(name)} is a vocoder, whose likelihood depends on a mel spectrogram: leave it out")
    level = training_level(name) if settings.rms is None else settings.rms
    estimates, bounds = [], []
    for number, one in enumerate(progress(recordings)):
        shared: dict[str, Any] = {
            **_labels(pipe, one),
            "quantization": quantization,
            "gain": 1.0 if level is None else level / one.rms,
            "generator": torch.Generator().manual_seed(settings.resampling.seed + number),
        }
        estimates.append(likelihood.bits_per_sample(pipe, one.waveform, **shared, **settings.estimator))
        if settings.bound_draws:
            bounds.append(likelihood.variational_bound(pipe, one.waveform, settings.bound_draws, **shared))
    bound = _columns(bounds)[0] if bounds else None
    return PipelineBits(name, "diffusion", level, *_columns(estimates), bound)


def _labels(pipe: Any, recording: Recording) -> dict[str, int]:
    """Return the class and the speaker of a recording under a diffusion pipeline."""
    labels = {}
    for kind, names in (("class", ("label", FOLDER)), ("speaker", ("speaker",))):
        known = known_labels(pipe.model.config, kind)
        if known is None:
            continue
        value = next((recording.fields[name] for name in names if name in recording.fields), None)
        if value is None:
            raise UserError(
                f"the likelihood depends on the {kind} of a recording, and {printable(recording.file)} has none: give "
                f"--pattern with the field {{{names[0]}}}"
            )
        labels[f"{kind}_labels"] = known.index(value)
    return labels


def _columns(estimates: Sequence[BitsPerSample]) -> tuple[np.ndarray, np.ndarray]:
    bits = np.array([float(one.bits) for one in estimates])
    return bits, np.array([float(one.standard_error) for one in estimates])


def _is_autoregressive(pipe: Any) -> bool:
    return isinstance(pipe, SashimiAutoregressivePipeline)
