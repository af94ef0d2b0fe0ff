"""Batches of waveforms, as a function of (seed, step). A resumed run needs no stored state of them.

Example g = step * global batch + position of the run has its own random stream and its own place in the shuffled epoch.
The data of a step do not depend on how processes and accumulation steps divide the global batch, nor on earlier steps.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sashimi_diffusion.data.recordings import Recordings
from sashimi_diffusion.training.diffusion.config import DiffusionConfig
from sashimi_diffusion.training.examples import MEASURE, STEP, TRAINING, VALIDATION, ShuffledEpochs, stream


@dataclass
class Batch:
    """Examples ready for the loss.

    Args:
        waveform: clean audio divided by the model's waveform_std, (B, 1, L), float32.
        noise: standard normal, (B, 1, L), float32.
        timesteps: (B,), int64.
        labels: (B,), int64, dropped labels are the null class; None for a model without classes.
        mel: log-mel spectrogram of the waveform before the division, (B, bands, frames); None for other models.
        speakers: (B,), int64, dropped speakers are the null speaker; None for a model without speakers.
    """

    waveform: Tensor
    noise: Tensor
    timesteps: Tensor
    labels: Tensor | None
    mel: Tensor | None
    speakers: Tensor | None = None


class BatchSource:
    """Cuts, shifts and scales recordings, and draws noise, timesteps and dropped labels, for any step of the run.

    The label and the speaker of an example are dropped together, because classifier-free guidance (arXiv 2207.12598)
    compares the prediction with both and the prediction with neither.

    Args:
        dataset: recordings (:class:`sashimi_diffusion.data.recordings.Recordings`).
        config: configuration of the run; its seed, data, schedule and objective are used.
        waveform_std: recordings are divided by it.
        num_classes: of the model; None: no labels.
        mel: a function from (B, 1, L) to (B, bands, frames); None for a model without mel conditioning.
        device: device of the batches.
        num_speakers: of the model; None: no speakers.
    """

    def __init__(
        self,
        dataset: Recordings,
        config: DiffusionConfig,
        waveform_std: float,
        num_classes: int | None = None,
        mel: Callable[[Tensor], Tensor] | None = None,
        device: torch.device | str = "cpu",
        num_speakers: int | None = None,
    ) -> None:
        self.dataset, self.data, self.seed = dataset, config.data, config.seed
        self.num_train_timesteps = config.schedule.num_train_timesteps
        self.label_dropout = config.objective.label_dropout
        self.waveform_std, self.mel, self.device = waveform_std, mel, device
        self.num_classes, self.num_speakers = num_classes, num_speakers
        self._epochs = ShuffledEpochs(len(dataset), config.seed)

    def training_batch(self, step: int, positions: range, global_batch: int) -> Batch:
        """Return the examples at ``positions`` of the global batch of ``step`` (from 0).

        The timesteps of the global batch are evenly spaced from one random offset per step: each is uniform, and the
        loss has less variance than with independent timesteps (Kingma et al. 2021, arXiv 2107.00630, appendix I.1).
        """
        offset = stream(STEP, self.seed, step).random()
        streams = [stream(TRAINING, self.seed, step, position) for position in positions]
        indices = [self._epochs[step * global_batch + position] for position in positions]
        shares = [(offset + position / global_batch) % 1.0 for position in positions]
        return self._batch(indices, streams, shares, drop_labels=True)

    def validation_batch(self, indices: Iterable[int]) -> Batch:
        """Return recordings ``indices`` of the dataset, with noise, timesteps and shifts that never change in a run."""
        indices = list(indices)
        streams = [stream(VALIDATION, self.seed, index) for index in indices]
        count = len(self.dataset)
        return self._batch(indices, streams, [(index + 0.5) / count for index in indices], drop_labels=False)

    def _batch(self, indices: list[int], streams: list, shares: list[float], drop_labels: bool) -> Batch:
        waveforms = torch.from_numpy(np.stack([self._window(i, s) for i, s in zip(indices, streams, strict=True)]))
        noise = np.stack([s.standard_normal(self.data.length, dtype=np.float32) for s in streams])
        dropped = [s.random() < self.label_dropout and drop_labels for s in streams]
        timesteps = torch.tensor([int(share * self.num_train_timesteps) for share in shares])
        waveforms = waveforms[:, None].to(self.device)  # (B, 1, L)
        return Batch(
            waveform=waveforms / self.waveform_std,
            noise=torch.from_numpy(noise)[:, None].to(self.device),
            timesteps=timesteps.to(self.device),
            labels=self._labels(self.dataset.labels, self.num_classes, indices, dropped),
            mel=None if self.mel is None else self.mel(waveforms),
            speakers=self._labels(self.dataset.speakers, self.num_speakers, indices, dropped),
        )

    def _labels(
        self, labels: np.ndarray | None, null: int | None, indices: list[int], dropped: list[bool]
    ) -> Tensor | None:
        """Return ``labels`` of the items ``indices``, ``null`` where dropped; None for a model without such labels."""
        if null is None or labels is None:
            return None
        shown = [null if drop else int(labels[index]) for index, drop in zip(indices, dropped, strict=True)]
        return torch.tensor(shown).to(self.device)

    def _window(self, index: int, stream: np.random.Generator) -> np.ndarray:
        """Return a training example from the recording of item ``index``, (L,) float32."""
        samples, length = self.dataset.clip_length(index), self.data.length
        start, spare = self.dataset.items[index][1], samples - length
        most = abs(spare) if self.data.random_shift is None else self.data.random_shift
        window = np.zeros(length, dtype=np.float32)
        if spare < 0:
            shift = stream.integers(min(most, -spare) + 1)
            window[shift : shift + samples] = self.dataset.clip(index)
        else:
            start = 0 if self.data.random_shift is None else min(start, spare)
            start += stream.integers(min(most, spare - start) + 1)
            window[:] = self.dataset.part(index, start, start + length)
        return window * np.float32(10 ** (stream.uniform(-1, 1) * self.data.gain_db / 20))


def measure_std(dataset: Recordings, config: DiffusionConfig, examples: int = 1000) -> float:
    """Return the root mean square of training examples: divided by it, they have unit variance."""
    source = BatchSource(dataset, config, waveform_std=1.0)
    indices = stream(MEASURE, config.seed).permutation(len(dataset))[:examples]
    power = [np.mean(np.square(source._window(int(i), stream(MEASURE, config.seed, int(i))))) for i in indices]
    return float(np.sqrt(np.mean(power)))
