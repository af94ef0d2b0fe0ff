"""An autoregressive run: cross-entropy of the next quantized sample."""

import math
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.models import AutoregressiveModel
from sashimi_diffusion.models.autoregressive_base import detached
from sashimi_diffusion.pipelines import SashimiAutoregressivePipeline
from sashimi_diffusion.pipelines.autoregressive import bits_of
from sashimi_diffusion.training.autoregressive.batches import IGNORED, TokenSource, padded
from sashimi_diffusion.training.autoregressive.config import AutoregressiveConfig
from sashimi_diffusion.training.autoregressive.samples import check_generation, save_samples
from sashimi_diffusion.training.autoregressive.score import bits_per_sample
from sashimi_diffusion.training.examples import spread_evenly
from sashimi_diffusion.training.splits import fingerprint, has_validation, open_split


class NextTokenLoss(nn.Module):
    """The summed cross-entropy, in nats, of targets (B, L), and the state after inputs (B, L) if one is carried."""

    def __init__(self, network: AutoregressiveModel) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Tensor, targets: Tensor, carried: bool, state: Any) -> tuple[Tensor, Any]:
        """``state`` None begins from rest; ``carried`` False leaves the state out, which is faster."""
        logits, state = self.network.prefill(inputs, state) if carried else (self.network(inputs), None)
        return F.cross_entropy(logits.float(), targets, ignore_index=IGNORED, reduction="sum"), state


class AutoregressiveTask:
    """See :class:`sashimi_diffusion.training.task.Task`."""

    def __init__(self, config: AutoregressiveConfig, device: torch.device, skip_bad_files: bool) -> None:
        self.config, self.device, self.chunks = config, device, config.data.carry_chunks
        self.samples = config.sampling.num_samples
        data = config.data
        recordings = open_split(data, "train", data.length * self.chunks, skip_bad_files)
        longest = max(recordings.clip_length(index) for index in range(len(recordings)))
        if longest <= data.length * (self.chunks - 1):
            raise UserError(
                f"data.carry_chunks is {self.chunks}, but even the longest recording, {longest} samples, is too "
                f"short for so many chunks of {data.length}: lower it or data.length"
            )
        try:
            self.network = config.model.network_class(
                sample_rate=data.sample_rate, sample_size=data.length, **config.model.arguments
            )
        except ValueError as error:
            raise UserError(f"the network cannot be built as `model` says: {error}") from error
        if data.length % self.network.length_multiple:
            raise UserError(
                f"data.length is {data.length}, but this network takes multiples of {self.network.length_multiple}"
            )
        self.module = NextTokenLoss(self.network)
        check_generation(config.sampling, self.network)
        self.source = self._source(recordings)
        self.validation = self._held_out("validation", skip_bad_files) if has_validation(data) else None
        self.test = self._held_out("test", skip_bad_files) if data.test else None
        self.data = fingerprint(recordings)
        counts = [0 if part is None else len(part.dataset) for part in (self.validation, self.test)]
        self.description = f"{len(recordings):,} training, {counts[0]:,} validation and {counts[1]:,} test examples"
        self._window, self._lengths, self._examples, self._states = -1, [], {}, {}

    def loss(self, module: nn.Module, step: int, positions: range, global_batch: int) -> Tensor:
        """The cross-entropy of the step's chunk of the examples at ``positions``.

        Parts of a global batch may have unequally many samples left. Each is divided by the mean number per part, so
        that the mean of all parts is the mean of all samples of the global batch, however that is divided.
        """
        length = self.config.data.length
        window, chunk = divmod(step, self.chunks)
        if window != self._window:
            self._window, self._examples, self._states = window, {}, {}
            self._lengths = self.source.training_lengths(window, global_batch)
        if positions.start not in self._examples:
            examples = self.source.training_examples(window, positions, global_batch)
            multiple = self.network.length_multiple if self.chunks == 1 else length * self.chunks
            self._examples[positions.start] = padded(examples, multiple, self.network.start_token)
        parts = self._examples[positions.start]
        inputs, targets = (part[:, chunk * length : (chunk + 1) * length].to(self.device) for part in parts)
        state = self._states.get(positions.start)
        total, state = module(inputs, targets, self.chunks > 1, state)
        scored = sum(min(max(0, samples - chunk * length), length) for samples in self._lengths)
        # A batch whose recordings all end early has nothing left to score in its last chunks: a loss of 0.
        loss = total / (max(1, scored) * len(positions) / global_batch)
        if self.chunks > 1:
            self._states[positions.start] = detached(state) if loss.isfinite() else None
        return loss

    def validate(self, accelerator: Accelerator, network: AutoregressiveModel) -> dict[str, float]:
        """Over chunks of the held-out recordings, each from rest, as the official code does."""
        if self.validation is None:
            return {}
        chunks = _chunks(self.validation, self.config.training.validation_examples)
        bits = self._bits(accelerator, network, chunks)
        return {"validation_loss": bits * math.log(2), "validation_bits": bits}

    def conclude(self, accelerator: Accelerator, network: AutoregressiveModel) -> dict[str, float]:
        """Bits per sample of the test data: of chunks as in :meth:`validate`, and of whole recordings."""
        if self.test is None:
            return {}
        recordings, chunks = self.test.whole_recordings(), _chunks(self.test, len(self.test.dataset))
        bits = self._bits(accelerator, network, recordings)
        identical = len(chunks) == len(recordings) and all(map(torch.equal, chunks, recordings))
        bits_of_chunks = bits if identical else self._bits(accelerator, network, chunks)
        return {"test_bits_chunks": bits_of_chunks, "test_bits": bits}

    def pipeline(self, network: AutoregressiveModel) -> SashimiAutoregressivePipeline:
        """The model alone."""
        return SashimiAutoregressivePipeline(model=network)

    def save_samples(self, run: Path, step: int, network: AutoregressiveModel) -> str:
        """Draw samples."""
        return save_samples(run, step, network, self.config.sampling)

    def _bits(self, accelerator: Accelerator, network: AutoregressiveModel, examples: list[Tensor]) -> float:
        size, chunk = self.config.training.batch_size, self.config.data.length
        return bits_per_sample(accelerator, network, examples, size, chunk)

    def _held_out(self, split: str, skip_bad_files: bool) -> TokenSource:
        return self._source(open_split(self.config.data, split, self.config.data.length, skip_bad_files))

    def _source(self, recordings) -> TokenSource:
        config = self.network.config
        return TokenSource(recordings, self.config, config.quantization, bits_of(config.num_tokens))


def _chunks(source: TokenSource, most: int) -> list[Tensor]:
    return [source.chunk(index) for index in spread_evenly(len(source.dataset), most)]
