"""Batches of quantized recordings, as a function of (seed, step)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sashimi_diffusion.data.quantization import encode, extremes, normalize
from sashimi_diffusion.data.recordings import Recordings
from sashimi_diffusion.training.autoregressive.config import AutoregressiveConfig
from sashimi_diffusion.training.examples import TRAINING, stream, training_order

IGNORED = -100
"""Target at padded positions; PyTorch's cross-entropy ignores it by default."""


@dataclass
class TokenBatch:
    """A chunk of the examples of a batch.

    Args:
        inputs: tokens, int64 (B, L).
        targets: tokens, int64 (B, L); IGNORED has no loss.
        samples: divisor of the sum of the losses, float32 scalar, see :meth:`AutoregressiveTask.loss`.
        state: key of the state between the chunks of these examples: index of the global batch, first position.
    """

    inputs: Tensor
    targets: Tensor
    samples: Tensor
    state: tuple[int, int]


class TokenSource:
    """Quantized examples of a data set.

    Args:
        dataset: recordings; each item is an example.
        config: configuration of the run; its seed and data are used.
        quantization: quantization of the model, "mu-law" or "linear".
        bits: bits of the quantization; the model has 2^bits tokens.
    """

    def __init__(self, dataset: Recordings, config: AutoregressiveConfig, quantization: str, bits: int) -> None:
        self.dataset, self.data, self.seed = dataset, config.data, config.seed
        self.quantization, self.bits = quantization, bits
        self._order = training_order(dataset, config.seed)
        self._limits: dict[int, tuple[Tensor, Tensor]] = {}

    def training_examples(self, batch: int, positions: range, global_batch: int) -> list[Tensor]:
        """Return training examples, int64 (L,), with a different L for each.

        Args:
            batch: index of the global batch, from 0.
            positions: positions of the examples in the global batch.
            global_batch: number of examples in a global batch.
        """
        numbers = [batch * global_batch + position for position in positions]
        return [self._random_window(self._index(number), stream(TRAINING, self.seed, number)) for number in numbers]

    def training_lengths(self, batch: int, global_batch: int) -> list[int]:
        """Return the number of samples of each example of global batch ``batch``; audio in the cache is not read."""
        numbers = range(batch * global_batch, (batch + 1) * global_batch)
        return [min(self.dataset.clip_length(self._index(number)), self.dataset.length) for number in numbers]

    def _index(self, number: int) -> int:
        """Return the item of training example ``number`` of the run."""
        return self.dataset.usable(self._order[number])

    def _random_window(self, index: int, random: np.random.Generator) -> Tensor:
        """Return the tokens (L,) of item ``index``, shifted at random within its recording."""
        start = self.dataset.items[index][1]
        last_start = max(0, self.dataset.clip_length(index) - self.dataset.length)
        if self.data.random_shift is None:
            start, largest_shift = 0, last_start
        else:
            start, largest_shift = min(start, last_start), self.data.random_shift
        start += int(random.integers(min(largest_shift, last_start - start) + 1))
        return self.tokens(index, start, start + self.dataset.length)

    def tokens(self, index: int, start: int, stop: int | None) -> Tensor:
        """Return samples ``start`` to ``stop`` (None: the end) of the recording of item ``index``, int64 (L,)."""
        waveform = torch.from_numpy(np.array(self.dataset.part(index, start, stop)))
        limits = self._limits_of_recording(index) if self.data.normalize == "recording" else None
        return encode(normalize(waveform, self.quantization, limits), self.quantization, self.bits)

    def chunk(self, index: int) -> Tensor:
        """Return the tokens (L,) of item ``index``, without padding."""
        index = self.dataset.usable(index)
        start = self.dataset.items[index][1]
        return self.tokens(index, start, start + self.dataset.length)

    def whole_recordings(self) -> list[Tensor]:
        """Return the tokens (L,) of each whole recording."""
        firsts = [index for index, (_, start) in enumerate(self.dataset.items) if start == 0]
        return [self.tokens(self.dataset.usable(index), 0, None) for index in firsts]

    def _limits_of_recording(self, index: int) -> tuple[Tensor, Tensor]:
        """Return the extremes of the recording of item ``index``, see :func:`extremes`."""
        recording = self.dataset.items[index][0]
        if recording not in self._limits:
            self._limits[recording] = extremes(torch.from_numpy(np.array(self.dataset.clip(index))))
        return self._limits[recording]


def padded(examples: Sequence[Tensor], multiple: int, start_token: int) -> tuple[Tensor, Tensor]:
    """Return inputs and targets of a batch of examples, int64 (B, L).

    The inputs are ``start_token`` and the targets delayed by one sample. The targets are padded with IGNORED.

    Args:
        examples: tokens, int64 (length,), of any lengths.
        multiple: L is the largest length, rounded up to a multiple of this number.
        start_token: input that predicts the first sample.
    """
    longest = max(len(example) for example in examples)
    length = -(-longest // multiple) * multiple
    inputs = torch.full((len(examples), length + 1), start_token)
    targets = torch.full((len(examples), length), IGNORED)
    for row, example in enumerate(examples):
        inputs[row, 1 : len(example) + 1] = example
        targets[row, : len(example)] = example
    return inputs[:, :-1], targets
