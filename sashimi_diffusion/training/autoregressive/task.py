"""Autoregressive training: cross-entropy of the next quantized sample."""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F

from sashimi_diffusion.data.recordings import Recordings
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.models.autoregressive_base import detached
from sashimi_diffusion.pipelines import SashimiAutoregressivePipeline
from sashimi_diffusion.pipelines.autoregressive import bits_of
from sashimi_diffusion.ssm import frozen
from sashimi_diffusion.terminal import say
from sashimi_diffusion.training.autoregressive.batches import IGNORED, TokenBatch, TokenSource, padded
from sashimi_diffusion.training.autoregressive.config import AutoregressiveConfig
from sashimi_diffusion.training.autoregressive.network import create_network
from sashimi_diffusion.training.autoregressive.samples import check_generation, save_samples
from sashimi_diffusion.training.examples import spread_evenly, unused_ends
from sashimi_diffusion.training.log import evaluation_bar
from sashimi_diffusion.training.model_card import autoregressive_usage
from sashimi_diffusion.training.splits import fingerprint, has_validation, open_split


class NextTokenLoss(nn.Module):
    """Sum of the cross-entropies of all samples of a batch, in nats."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Tensor, targets: Tensor, carried: bool, state: Any) -> tuple[Tensor, Any]:
        """Return the loss, a scalar, and the state after the inputs.

        Args:
            inputs: tokens, int64 (B, L).
            targets: tokens, int64 (B, L); IGNORED has no loss.
            carried: whether to use and return a state; False is faster and returns None as the state.
            state: state before the inputs; None: the initial state.
        """
        logits, state = self.network.prefill(inputs, state) if carried else (self.network(inputs), None)
        return F.cross_entropy(logits.float(), targets, ignore_index=IGNORED, reduction="sum"), state


class AutoregressiveTask:
    """Autoregressive training; implements :class:`sashimi_diffusion.training.task.Task`."""

    measured: Mapping[str, float] = {}

    def __init__(self, config: AutoregressiveConfig, device: torch.device, skip_bad_files: bool) -> None:
        self.config, self.device, self.chunks = config, device, config.data.carry_chunks
        self.samples = config.sampling.num_samples
        recordings = open_split(config.data, "train", config.data.length * self.chunks, skip_bad_files)
        self._check_length(recordings)
        self.network = create_network(config)
        self.module: nn.Module = NextTokenLoss(self.network)
        if self.samples:
            check_generation(config.sampling, self.network, device)
        self.source = self._source(recordings)
        self.validation = self._held_out("validation", skip_bad_files) if has_validation(config.data) else None
        self.test = self._held_out("test", skip_bad_files) if config.data.test else None
        self.data, self.usage = fingerprint(recordings), autoregressive_usage(self.network)
        counts = [0 if part is None else len(part.dataset) for part in (self.validation, self.test)]
        self.description = f"{len(recordings):,} training, {counts[0]:,} validation and {counts[1]:,} test examples"
        if recordings.changes:
            self.description += f"; {recordings.changes}"
        if unused := unused_ends(recordings, config.data.random_shift):
            self.description += f"; {unused}"
        self.against_graph = "data.carry_chunks carries states from step to step" if self.chunks > 1 else ""
        # Examples that are divided into chunks are kept for the steps that use them; threads prepare later batches.
        kept = 2 * config.training.gradient_accumulation if self.chunks > 1 else 0
        self._padded = lru_cache(maxsize=kept)(self._padded_examples)
        # States after the last chunk of the parts of a global batch, by the positions of their first examples.
        self._batch, self._states = -1, dict[int, Any]()

    def batch(self, step: int, positions: range, global_batch: int) -> TokenBatch:
        """Return the current chunk of the examples at ``positions``."""
        length = self.config.data.length
        batch, chunk = divmod(step, self.chunks)
        part = self._padded(batch, positions, global_batch)
        inputs, targets = (tokens[:, chunk * length : (chunk + 1) * length] for tokens in part)
        lengths = self.source.training_lengths(batch, global_batch)
        samples = sum(min(max(0, count - chunk * length), length) for count in lengths)
        # If all recordings of the batch have ended, its last chunks have no samples: the loss is 0.
        share = torch.tensor(max(1, samples) * len(positions) / global_batch, dtype=torch.float32)
        return TokenBatch(inputs, targets, share, (batch, positions.start))

    def complete(self, batch: TokenBatch, step: int, positions: range, global_batch: int) -> TokenBatch:
        """Return ``batch``: it has no random numbers."""
        return batch

    def loss(self, module: nn.Module, batch: TokenBatch) -> Tensor:
        """Return the cross-entropy of a batch in nats per sample.

        The loop averages the losses of the parts of a global batch. The parts may contain different numbers of samples,
        so the sum of a part is divided by the mean number of samples per part. The average is then the mean over all
        samples of the global batch and does not depend on its division into parts.
        """
        if self.chunks == 1:
            return module(batch.inputs, batch.targets, False, None)[0] / batch.samples
        number, first = batch.state
        if number != self._batch:
            self._batch, self._states = number, {}
        total, state = module(batch.inputs, batch.targets, True, self._states.get(first))
        loss = total / batch.samples
        # A state that is not finite would spoil all following chunks.
        self._states[first] = detached(state) if loss.isfinite() else None
        return loss

    def validate(self, accelerator: Accelerator, network: Any) -> dict[str, float]:
        """Return the loss per sample of chunks of held-out recordings, in nats and in bits.

        Each chunk starts from the initial state, as in the official code.
        """
        if self.validation is None:
            return {}
        chunks = _chunks(self.validation, self.config.training.validation_examples)
        bits = self._bits(accelerator, network, chunks)
        return {"validation_loss": bits * math.log(2), "validation_bits": bits}

    def conclude(self, accelerator: Accelerator, network: Any) -> dict[str, float]:
        """Return the bits per sample of the test data, in chunks as in :meth:`validate` and as whole recordings."""
        if self.test is None:
            return {}
        recordings, chunks = self.test.whole_recordings(), _chunks(self.test, len(self.test.dataset))
        if accelerator.is_main_process:
            say(f"computing the bits per sample of {len(recordings)} test recordings")
        bits = self._bits(accelerator, network, recordings)
        identical = len(chunks) == len(recordings) and all(map(torch.equal, chunks, recordings))
        bits_of_chunks = bits if identical else self._bits(accelerator, network, chunks)
        return {"test_bits_chunks": bits_of_chunks, "test_bits": bits}

    def pipeline(self, network: Any) -> SashimiAutoregressivePipeline:
        """Return a pipeline of the model."""
        sampling = self.config.sampling
        return SashimiAutoregressivePipeline(network, sampling.temperature, sampling.top_p)

    def save_samples(self, run: Path, step: int, network: Any) -> str:
        """Draw samples."""
        return save_samples(run, step, network, self.config.sampling)

    def _padded_examples(self, batch: int, positions: range, global_batch: int) -> tuple[Tensor, Tensor]:
        """Return inputs and targets of whole examples, see :func:`padded`; on a GPU, all batches have equal shapes."""
        equal = self.chunks > 1 or self.device.type == "cuda"
        multiple = self.config.data.length * self.chunks if equal else self.network.length_multiple
        examples = self.source.training_examples(batch, positions, global_batch)
        return padded(examples, multiple, self.network.start_token)

    def _check_length(self, recordings: Recordings) -> None:
        length = self.config.data.length
        if self.chunks == 1:
            return
        longest = max(recordings.clip_length(index) for index in range(len(recordings)))
        if longest <= length * (self.chunks - 1):
            raise UserError(
                f"data.carry_chunks is {self.chunks}, but the longest recording has {longest} samples, too few for "
                f"this number of chunks of data.length={length} samples: lower one of them"
            )

    def _bits(self, accelerator: Accelerator, network: Any, examples: list[Tensor]) -> float:
        size, chunk = self.config.training.batch_size, self.config.data.length
        return bits_per_sample(accelerator, network, examples, size, chunk)

    def _held_out(self, split: str, skip_bad_files: bool) -> TokenSource:
        """Return the chunks of a split that is not for training."""
        return self._source(open_split(self.config.data, split, self.config.data.length, skip_bad_files))

    def _source(self, recordings: Recordings) -> TokenSource:
        config = self.network.config
        return TokenSource(recordings, self.config, config.quantization, bits_of(config.num_tokens))


def _chunks(source: TokenSource, limit: int) -> list[Tensor]:
    return [source.chunk(index) for index in spread_evenly(len(source.dataset), limit)]


@torch.no_grad()
def bits_per_sample(
    accelerator: Accelerator, model: Any, examples: Sequence[Tensor], batch_size: int, chunk: int
) -> float:
    """Return the mean of -log2 p(sample | earlier samples of its example) over all samples of all ``examples``.

    This is the cross-entropy in nats divided by ln 2, the NLL of the SaShiMi paper (arXiv 2202.09729, section 5).
    Every example starts from the initial state, which is carried from chunk to chunk. The processes share the work.

    Args:
        accelerator: of the run.
        model: an autoregressive model.
        examples: tokens, int64 (L,), of any lengths.
        batch_size: number of examples at a time.
        chunk: samples of each example in one forward pass.
    """
    ordered = sorted(examples, key=len)
    batches = [ordered[start : start + batch_size] for start in range(0, len(ordered), batch_size)]
    own = batches[accelerator.process_index :: accelerator.num_processes]
    parts = sum(-(-len(batch[-1]) // chunk) for batch in own)
    nats = torch.zeros((), dtype=torch.float64, device=accelerator.device)
    with frozen(model), evaluation_bar("bits per sample", parts, accelerator.is_main_process) as bar:
        for batch in own:
            inputs, targets = (part.to(accelerator.device) for part in padded(batch, 1, model.start_token))
            state, chunks = None, zip(inputs.split(chunk, dim=1), targets.split(chunk, dim=1), strict=True)
            for chunk_inputs, chunk_targets in chunks:
                with accelerator.autocast():
                    logits, state = model.prefill(chunk_inputs, state)
                nats += F.cross_entropy(logits.float(), chunk_targets, ignore_index=IGNORED, reduction="sum").double()
                bar.update()
    total = accelerator.reduce(nats, "sum").item()
    return total / sum(len(example) for example in examples) / math.log(2)
