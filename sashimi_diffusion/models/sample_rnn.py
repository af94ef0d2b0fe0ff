"""SampleRNN, the recurrent baseline of the SaShiMi paper: recurrent networks at several rates (arXiv 1612.07837)."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional as F

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.models.autoregressive_base import AutoregressiveModel
from sashimi_diffusion.models.layers import module_list


class SampleRNNState(NamedTuple):
    """State of a SampleRNN after some samples; the tiers are in their order, the finest first.

    Args:
        position: samples processed so far, modulo the longest frame.
        tokens: latest inputs, one less than the longest frame: (B, frame - 1).
        hidden: hidden state of each tier's recurrent network, (n_rnn, B, dim).
        conditioning: output of each tier for the tier below during its current frame, (B, ratio, dim).
    """

    position: int
    tokens: Tensor
    hidden: tuple[Tensor, ...]
    conditioning: tuple[Tensor, ...]


class FrameTier(nn.Module):
    """A recurrent network that processes one frame of samples at a time and conditions the tier below.

    Args:
        frame: samples in a frame.
        ratio: frames of the tier below (or samples) in a frame.
        dim: width.
        n_rnn: GRU layers.
    """

    def __init__(self, frame: int, ratio: int, dim: int, n_rnn: int) -> None:
        super().__init__()
        self.frame, self.ratio = frame, ratio
        self.input = nn.Linear(frame, dim)
        self.initial_hidden = nn.Parameter(torch.zeros(n_rnn, dim))
        self.rnn = nn.GRU(dim, dim, n_rnn, batch_first=True)
        self.output = nn.Linear(dim, ratio * dim)

    def forward(self, frames: Tensor, above: Tensor | None, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Process n frames.

        Args:
            frames: amplitudes, (B, n, frame).
            above: conditioning from the tier above, (B, n, dim), or None for the highest tier.
            hidden: hidden state before them, (n_rnn, B, dim).

        Returns:
            conditioning of the tier below, (B, n · ratio, dim), and the next hidden state.
        """
        x = self.input(frames)
        x, hidden = self.rnn(x if above is None else x + above, hidden.contiguous())
        return self.output(x).unflatten(-1, (self.ratio, -1)).flatten(1, 2), hidden


class SampleRNN(AutoregressiveModel):
    """SampleRNN; the default has three tiers and the size of the SaShiMi paper (35.0M parameters).

    A tier with frames of n samples processes the n latest inputs every n samples. The finest level is a feed-forward
    network that processes the latest samples at every sample. Unlike the official implementations, this one has no
    weight normalization.

    Args:
        num_tokens: number of quantization levels.
        quantization: "mu-law" or "linear", see :mod:`sashimi_diffusion.data.quantization`.
        sample_rate: rate of the waveforms in Hz.
        sample_size: number of samples the model was trained on, and the default length to generate.
        frame_sizes: samples per frame of the finest tier, then frames of each tier per frame of the next.
        dim: width of all tiers.
        n_rnn: GRU layers in each tier.
        embedding_dim: width of a sample's embedding at the finest level.

    Raises:
        UserError: ``frame_sizes`` is empty or has a number less than 1.
    """

    @register_to_config
    def __init__(
        self,
        num_tokens: int = 256,
        quantization: str = "mu-law",
        sample_rate: int = 16000,
        sample_size: int = 16000,
        frame_sizes: Sequence[int] = (8, 2, 2),
        dim: int = 1024,
        n_rnn: int = 1,
        embedding_dim: int = 256,
    ) -> None:
        super().__init__()
        if not frame_sizes or min(frame_sizes) < 1:
            raise UserError(f"frame_sizes must be numbers of at least 1, one per tier, got {list(frame_sizes)}")
        frames = [math.prod(frame_sizes[: tier + 1]) for tier in range(len(frame_sizes))]
        self.tiers = module_list(
            FrameTier(frame, ratio, dim, n_rnn) for frame, ratio in zip(frames, frame_sizes, strict=True)
        )
        self.embedding = nn.Embedding(num_tokens, embedding_dim)
        self.samples = nn.Conv1d(embedding_dim, dim, frame_sizes[0], bias=False)
        self.hidden = nn.Linear(dim, dim)
        self.output = nn.Linear(dim, num_tokens)

    @property
    def length_multiple(self) -> int:
        """The longest frame; lengths in :meth:`forward` must be multiples of it."""
        return self.tiers[-1].frame

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits (B, num_tokens, L) for the inputs ``tokens`` (B, L), see :class:`AutoregressiveModel`."""
        self.require_length(tokens.shape[-1], self.length_multiple)
        return self._advance(tokens, self.initial_state(tokens.shape[0]))[0]

    def initial_state(self, batch_size: int) -> SampleRNNState:
        """Return the state before the first input."""
        tokens = torch.full((batch_size, self.length_multiple - 1), self.start_token, device=self.device)
        hidden = tuple(tier.initial_hidden.unsqueeze(1).expand(-1, batch_size, -1) for tier in self.tiers)
        conditioning = tuple(
            start.new_zeros(batch_size, tier.ratio, start.shape[-1])
            for tier, start in zip(self.tiers, hidden, strict=True)
        )
        return SampleRNNState(0, tokens, hidden, conditioning)

    def step(self, tokens: Tensor, state: SampleRNNState) -> tuple[Tensor, SampleRNNState]:
        """Run one recurrence step: logits (B, num_tokens) and the next state, see :class:`AutoregressiveModel`."""
        logits, state = self._advance(tokens.unsqueeze(1), state)
        return logits.squeeze(-1), state

    def prefill(self, tokens: Tensor, state: SampleRNNState | None = None) -> tuple[Tensor, SampleRNNState]:
        """Process many inputs: logits (B, num_tokens, L) and the next state, see :class:`AutoregressiveModel`.

        All whole frames of the highest tier run at once; the samples before and after them run as recurrence steps.
        """
        self.require_length(tokens.shape[-1])
        state = self.initial_state(tokens.shape[0]) if state is None else state
        before = min(-state.position % self.length_multiple, tokens.shape[1])
        whole = (tokens.shape[1] - before) // self.length_multiple * self.length_multiple
        sizes = [1] * before + [whole] * (whole > 0) + [1] * (tokens.shape[1] - before - whole)
        parts = []
        for part in tokens.split(sizes, dim=1):
            logits, state = self._advance(part, state)
            parts.append(logits)
        return torch.cat(parts, dim=-1), state

    def _advance(self, tokens: Tensor, state: SampleRNNState) -> tuple[Tensor, SampleRNNState]:
        """Process one sample, or a multiple of the longest frame at the beginning of one."""
        length, longest = tokens.shape[1], self.length_multiple
        inputs = torch.cat([state.tokens, tokens], dim=1)  # (B, longest - 1 + length)
        amplitudes = 2 * (inputs.to(self.output.weight.dtype) / self.start_token - 1)
        hidden, conditioning = list(state.hidden), list(state.conditioning)
        above: Tensor | None = None
        for index in reversed(range(len(self.tiers))):
            tier = self.tiers[index]
            if state.position % tier.frame == 0:
                # A frame ends with the first of its inputs, the latest one known when its first sample is predicted.
                count, first = max(1, length // tier.frame), longest - tier.frame
                frames = amplitudes[:, first : first + count * tier.frame].unflatten(1, (count, tier.frame))
                above, hidden[index] = tier(frames, above, hidden[index])
                conditioning[index] = above[:, -tier.ratio :].clone()  # a slice would keep all of it alive
            if length == 1:
                slot = state.position % tier.frame * tier.ratio // tier.frame
                above = conditioning[index][:, slot : slot + 1]
        assert above is not None  # the highest tier runs at position 0; its output is kept in the state
        logits = self._sample_level(inputs[:, longest - self.tiers[0].frame :], above)
        position = (state.position + length) % longest
        return logits, SampleRNNState(position, inputs[:, length:].clone(), tuple(hidden), tuple(conditioning))

    def _sample_level(self, inputs: Tensor, above: Tensor) -> Tensor:
        """Return the logits (B, num_tokens, L).

        Args:
            inputs: latest inputs, (B, frame - 1 + L) with the frame of the finest tier.
            above: conditioning from the finest tier, (B, L, dim).
        """
        x = self.samples(self.embedding(inputs).transpose(1, 2)).transpose(1, 2)  # (B, L, dim)
        x = F.relu(self.hidden(F.relu(x + above)))
        return self.output(x).transpose(1, 2)
