"""Batches of quantized recordings, as a function of (seed, step)."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sashimi_diffusion.data.quantization import encode, extremes, normalize
from sashimi_diffusion.data.recordings import Recordings
from sashimi_diffusion.training.autoregressive.config import AutoregressiveConfig
from sashimi_diffusion.training.examples import TRAINING, ShuffledEpochs, stream

IGNORED = -100
"""Target of padding, which PyTorch's cross-entropy ignores by default."""


class TokenSource:
    """Cuts recordings into examples and quantizes them.

    Args:
        dataset: recordings whose items are examples.
        config: configuration of the run; its seed and data are used.
        quantization: "mu-law" or "linear", that of the model.
        bits: of the model's quantization.
    """

    def __init__(self, dataset: Recordings, config: AutoregressiveConfig, quantization: str, bits: int) -> None:
        self.dataset, self.data, self.seed = dataset, config.data, config.seed
        self.quantization, self.bits = quantization, bits
        self._epochs = ShuffledEpochs(len(dataset), config.seed)
        self._limits: dict[int, tuple[Tensor, Tensor]] = {}

    def training_examples(self, window: int, positions: range, global_batch: int) -> list[Tensor]:
        """Return the examples at ``positions`` of global batch ``window`` (from 0): int64 (L,), of any lengths."""
        numbers = [window * global_batch + position for position in positions]
        return [self._window(self._epochs[number], stream(TRAINING, self.seed, number)) for number in numbers]

    def training_lengths(self, window: int, global_batch: int) -> list[int]:
        """Return the numbers of samples of all examples of global batch ``window``, without reading audio."""
        numbers = range(window * global_batch, (window + 1) * global_batch)
        return [min(self.dataset.clip_length(self._epochs[number]), self.dataset.length) for number in numbers]

    def _window(self, index: int, random: np.random.Generator) -> Tensor:
        start = self.dataset.items[index][1]
        spare = max(0, self.dataset.clip_length(index) - self.dataset.length)
        start, most = (0, spare) if self.data.random_shift is None else (min(start, spare), self.data.random_shift)
        start += int(random.integers(min(most, spare - start) + 1))
        return self.tokens(index, start, start + self.dataset.length)

    def tokens(self, index: int, start: int, stop: int | None) -> Tensor:
        """Return the tokens (L,) of samples ``start`` to ``stop`` of the recording of item ``index``."""
        waveform = torch.from_numpy(np.array(self.dataset.part(index, start, stop)))
        limits = self._limits_of_recording(index) if self.data.normalize == "recording" else None
        return encode(normalize(waveform, self.quantization, limits), self.quantization, self.bits)

    def chunk(self, index: int) -> Tensor:
        """Return the tokens (L,) of item ``index``, without padding."""
        start = self.dataset.items[index][1]
        return self.tokens(index, start, start + self.dataset.length)

    def whole_recordings(self) -> list[Tensor]:
        """Return the tokens (L,) of each whole recording."""
        return [self.tokens(index, 0, None) for index, (_, start) in enumerate(self.dataset.items) if start == 0]

    def _limits_of_recording(self, index: int) -> tuple[Tensor, Tensor]:
        recording = self.dataset.items[index][0]
        if recording not in self._limits:
            self._limits[recording] = extremes(torch.from_numpy(np.array(self.dataset.clip(index))))
        return self._limits[recording]


def padded(examples: Sequence[Tensor], multiple: int, start_token: int) -> tuple[Tensor, Tensor]:
    """Return inputs and targets (B, L) of examples (L,) of any lengths; L is a multiple of ``multiple``.

    The inputs are the targets delayed by one sample, after ``start_token``. The targets are padded with IGNORED.
    """
    longest = max(len(example) for example in examples)
    length = -(-longest // multiple) * multiple
    inputs = torch.full((len(examples), length + 1), start_token)
    targets = torch.full((len(examples), length), IGNORED)
    for row, example in enumerate(examples):
        inputs[row, 1 : len(example) + 1] = example
        targets[row, : len(example)] = example
    return inputs[:, :-1], targets
