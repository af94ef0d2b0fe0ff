"""Batches of waveforms, as a function of (seed, step).

Example number step * global_batch + position of the run has its own random number generator and its own place in the
shuffled epochs. The data of a step therefore depend neither on earlier steps, nor on the division of the global batch
among processes and accumulation steps. A checkpoint does not store a state of them.
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from sashimi_diffusion.data.mel import LogMel
from sashimi_diffusion.data.mel_envelope import MelEnvelope
from sashimi_diffusion.data.pre_emphasis import pre_emphasize
from sashimi_diffusion.data.recordings import Recordings
from sashimi_diffusion.pipelines.mel import log_mel
from sashimi_diffusion.training.diffusion.config import DiffusionConfig
from sashimi_diffusion.training.diffusion.objective import training_timesteps
from sashimi_diffusion.training.examples import DEVICE, MEASURE, STEP, TRAINING, VALIDATION, stream, training_order


@dataclass
class Batch:
    """Examples ready for the loss.

    Args:
        waveform: clean audio as the diffusion sees it (:meth:`.Denoiser.normalize`), (B, C, L), float32.
        noise: standard normal, (B, C, L), float32.
        timesteps: timesteps of the network, (B,): int64 diffusion steps, or float32 for flow matching and EDM.
        labels: classes, (B,), int64; a dropped label is the null class. None for a model without classes.
        mel: log-mel spectrogram of the waveform before that, (B, bands, frames); None for a model without mel
            conditioning.
        speakers: (B,), int64; a dropped speaker is the null speaker. None for a model without speakers.
    """

    waveform: Tensor
    noise: Tensor
    timesteps: Tensor
    labels: Tensor | None
    mel: Tensor | None
    speakers: Tensor | None = None


@dataclass
class Windows:
    """The part of a training batch that threads prepare on the CPU for a GPU.

    Args:
        waveform: windows of recordings without a random gain, (B, C, L), float32.
        labels, speakers: as in :class:`Batch`.
    """

    waveform: Tensor
    labels: Tensor | None
    speakers: Tensor | None


class BatchSource:
    """Source of training and validation batches for any step of the run.

    It cuts, shifts and scales recordings, and draws noise, timesteps and dropped labels. NumPy draws all random numbers
    of an example in :meth:`training_batch`. For a GPU, :meth:`windows` and :meth:`complete` take its place: the noise,
    the timesteps and the gains are drawn on the device.

    The label and the speaker of an example are dropped together, because classifier-free guidance (arXiv 2207.12598)
    compares the prediction with both and the prediction with neither.

    Args:
        dataset: recordings (:class:`sashimi_diffusion.data.recordings.Recordings`).
        config: configuration of the run; its seed, data, channels, schedule and objective are used.
        normalize: function of waveforms (B, C, L) that returns them as the diffusion sees them.
        num_classes: number of classes of the model, and index of the null class; None: no labels.
        mel: a function from (B, 1, L) to (B, bands, frames); None for a model without mel conditioning.
        envelope: what the waveforms lose before ``normalize`` for a model with ``mel_whitening``; None for others.
        device: device of the batches.
        num_speakers: number of speakers of the model, and index of the null speaker; None: no speakers.
    """

    def __init__(
        self,
        dataset: Recordings,
        config: DiffusionConfig,
        normalize: Callable[[Tensor], Tensor],
        num_classes: int | None = None,
        mel: Callable[[Tensor], Tensor] | None = None,
        device: torch.device | str = "cpu",
        num_speakers: int | None = None,
        envelope: MelEnvelope | None = None,
    ) -> None:
        self.dataset, self.data, self.seed, self.channels = dataset, config.data, config.seed, config.channels
        self.timesteps = training_timesteps(config)
        self.label_dropout, self.exponent = config.objective.label_dropout, config.objective.timestep_exponent
        self.normalize, self.mel, self.envelope, self.device = normalize, mel, envelope, device
        self.num_classes, self.num_speakers = num_classes, num_speakers
        self._order = training_order(dataset, config.seed)

    def training_batch(self, step: int, positions: range, global_batch: int) -> Batch:
        """Return the examples at ``positions`` of the global batch of ``step`` (from 0), of ``global_batch`` examples.

        The timesteps T uᵉ of the global batch have evenly spaced u from one random offset per step: each u is uniform,
        and the loss has less variance than with independent timesteps (Kingma et al. 2021, arXiv 2107.00630, appendix
        I.1).
        """
        offset = stream(STEP, self.seed, step).random()
        indices, streams = self._examples(step, positions, global_batch)
        fractions = [((offset + position / global_batch) % 1.0) ** self.exponent for position in positions]
        return self._batch(indices, streams, fractions, drop_labels=True)

    def windows(self, step: int, positions: range, global_batch: int) -> Windows:
        """Return the examples of :meth:`training_batch` on the CPU, without what :meth:`complete` draws."""
        indices, streams = self._examples(step, positions, global_batch)
        windows = np.stack([self._window(i, s) for i, s in zip(indices, streams, strict=True)])
        dropped = [s.random() < self.label_dropout for s in streams]
        return Windows(
            waveform=torch.from_numpy(windows),  # (B, C, L)
            labels=self._labels(self.dataset.labels, self.num_classes, indices, dropped),
            speakers=self._labels(self.dataset.speakers, self.num_speakers, indices, dropped),
        )

    def complete(self, windows: Windows, step: int, positions: range, global_batch: int) -> Batch:
        """Return the batch of ``windows``, with noise, timesteps and gains drawn on their device.

        They are drawn for the whole global batch from the seed and the step, so they do not depend on its division. The
        timesteps have the distribution of :meth:`training_batch`.
        """
        device, mine = windows.waveform.device, slice(positions.start, positions.stop)
        random = torch.Generator(device).manual_seed(int(stream(DEVICE, self.seed, step).integers(2**63)))
        noise = torch.randn(global_batch, self.channels, self.data.length, generator=random, device=device)[mine]
        gains = torch.rand(global_batch, 1, 1, generator=random, device=device)[mine] * 2 - 1
        offset = torch.rand((), generator=random, device=device, dtype=torch.float64)
        places = torch.arange(positions.start, positions.stop, device=device, dtype=torch.float64) / global_batch
        waveform, mel = self._seen(windows.waveform * 10 ** (gains * (self.data.gain_db / 20)))
        return Batch(
            waveform=waveform,
            noise=noise,
            timesteps=self.timesteps(((offset + places) % 1.0) ** self.exponent),
            labels=windows.labels,
            mel=mel,
            speakers=windows.speakers,
        )

    def validation_batch(self, indices: Iterable[int]) -> Batch:
        """Return items ``indices`` of the data set, with noise, timesteps and shifts that never change in a run."""
        indices = list(indices)
        streams = [stream(VALIDATION, self.seed, index) for index in indices]
        fractions = [(index + 0.5) / len(self.dataset) for index in indices]
        return self._batch([self.dataset.usable(index) for index in indices], streams, fractions, drop_labels=False)

    def _examples(self, step: int, positions: range, global_batch: int) -> tuple[list[int], list[np.random.Generator]]:
        """Return the index and the random number generator of each of the examples at ``positions``."""
        indices = [self.dataset.usable(self._order[step * global_batch + position]) for position in positions]
        return indices, [stream(TRAINING, self.seed, step, position) for position in positions]

    def _batch(self, indices: list[int], streams: list, fractions: list[float], drop_labels: bool) -> Batch:
        """Return a batch of the items ``indices``.

        Args:
            indices: indices of the items.
            streams: random number generator of each example.
            fractions: timestep of each example as a fraction of all timesteps, in [0, 1).
            drop_labels: whether to drop labels at random.
        """
        windows = [self._window(i, s) * self._gain(s) for i, s in zip(indices, streams, strict=True)]
        shape = (self.channels, self.data.length)
        noise = np.stack([s.standard_normal(shape, dtype=np.float32) for s in streams])
        dropped = [s.random() < self.label_dropout and drop_labels for s in streams]
        timesteps = self.timesteps(torch.tensor(fractions, dtype=torch.float64))
        waveforms, mel = self._seen(torch.from_numpy(np.stack(windows)).to(self.device))  # (B, C, L)
        return Batch(
            waveform=waveforms,
            noise=torch.from_numpy(noise).to(self.device),
            timesteps=timesteps.to(self.device),
            labels=_moved(self._labels(self.dataset.labels, self.num_classes, indices, dropped), self.device),
            mel=mel,
            speakers=_moved(self._labels(self.dataset.speakers, self.num_speakers, indices, dropped), self.device),
        )

    def _seen(self, waveforms: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return waveforms (B, C, L) as the diffusion sees them, and their mel spectrograms (B, bands, frames)."""
        mel = None if self.mel is None else self.mel(waveforms)
        if self.envelope is not None and mel is not None:
            waveforms = self.envelope.whiten(waveforms, mel)
        return self.normalize(waveforms), mel

    def _labels(
        self, labels: np.ndarray | None, null: int | None, indices: list[int], dropped: list[bool]
    ) -> Tensor | None:
        """Return ``labels`` of the items ``indices``, ``null`` where dropped; None for a model without such labels."""
        if null is None or labels is None:
            return None
        kept = [null if drop else int(labels[index]) for index, drop in zip(indices, dropped, strict=True)]
        return torch.tensor(kept)

    def _window(self, index: int, random: np.random.Generator) -> np.ndarray:
        """Return item ``index`` with a random shift, (C, L) float32; a short recording is padded with zeros."""
        samples, length = self.dataset.clip_length(index), self.data.length
        start, last_start = self.dataset.items[index][1], samples - length
        largest_shift = abs(last_start) if self.data.random_shift is None else self.data.random_shift
        window = np.zeros((self.channels, length), dtype=np.float32)
        if last_start < 0:
            shift = random.integers(min(largest_shift, -last_start) + 1)
            window[:, shift : shift + samples] = self.dataset.clip(index)
        else:
            start = 0 if self.data.random_shift is None else min(start, last_start)
            start += int(random.integers(min(largest_shift, last_start - start) + 1))
            window[:] = self.dataset.part(index, start, start + length)
        return window

    def _gain(self, random: np.random.Generator) -> np.float32:
        return np.float32(10 ** (random.uniform(-1, 1) * self.data.gain_db / 20))


def measure_std(dataset: Recordings, config: DiffusionConfig, examples: int = 1000) -> float:
    """Return the root mean square of up to ``examples`` training windows after pre-emphasis and whitening.

    The divided waveforms have unit variance, as the noise has.
    """
    coefficient = config.model.argument("pre_emphasis")
    mel = _log_mel(config) if config.model.argument("mel_whitening") else None
    source = BatchSource(
        dataset,
        config,
        lambda waveform: pre_emphasize(waveform, coefficient),
        mel=mel,
        envelope=None if mel is None else MelEnvelope(mel),
    )
    indices = stream(MEASURE, config.seed).permutation(len(dataset))[:examples]
    streams = [stream(MEASURE, config.seed, int(i)) for i in indices]
    usable = (dataset.usable(int(i)) for i in indices)
    windows = (source._window(i, s) * source._gain(s) for i, s in zip(usable, streams, strict=True))
    powers = [source._seen(torch.from_numpy(window)[None])[0].square().mean() for window in windows]
    return float(torch.stack(powers).double().mean().sqrt())


def _log_mel(config: DiffusionConfig) -> LogMel:
    arguments = {name: config.model.argument(name) for name in ("mel_channels", "mel_upsample")}
    settings = asdict(config.data.mel.settings)
    return log_mel({**arguments, "sample_rate": config.data.sample_rate, "mel_settings": settings})


def _moved(labels: Tensor | None, device: torch.device | str) -> Tensor | None:
    return None if labels is None else labels.to(device)
