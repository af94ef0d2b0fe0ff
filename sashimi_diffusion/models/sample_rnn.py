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


class SampleRNNState(NamedTuple):
    """All that a SampleRNN remembers; tiers in their order, the finest first.

    Args:
        position: samples absorbed so far, modulo the longest frame.
        tokens: the latest inputs, one less than the longest frame: (B, frame - 1).
        hidden: of each tier's recurrent network, (n_rnn, B, dim).
        conditioning: what each tier says about the frames below it during its present frame, (B, frames, dim).
    """

    position: int
    tokens: Tensor
    hidden: tuple[Tensor, ...]
    conditioning: tuple[Tensor, ...]


class FrameTier(nn.Module):
    """A recurrent network that hears one frame of samples at a time and conditions the tier below for the next frame.

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
        """Frames (B, n, frame) and what the tier above says of them (B, n, dim), after ``hidden``.

        Returns:
            what is said of the tier below, (B, n · ratio, dim), and the hidden state afterwards.
        """
        x = self.input(frames)
        x, hidden = self.rnn(x if above is None else x + above, hidden.contiguous())
        return self.output(x).unflatten(-1, (self.ratio, -1)).flatten(1, 2), hidden


class SampleRNN(AutoregressiveModel):
    """SampleRNN with three tiers of frames, by default of the size that the SaShiMi paper compares with (35.0M).

    A tier with frames of n samples hears the n latest inputs every n samples; the finest level is a feed-forward
    network of the latest samples at every sample. The official implementations normalize weights; this one does not.

    Args:
        num_tokens: number of quantization levels.
        quantization: "mu-law" or "linear", see :mod:`sashimi_diffusion.data.quantization`.
        sample_rate: rate of the waveforms in Hz.
        sample_size: number of samples the model was trained on, and the default length to generate.
        frame_sizes: samples in a frame of the finest tier, then how many of a tier's frames make one of the next.
        dim: width of all tiers.
        n_rnn: GRU layers in each tier.
        embedding_dim: width of a sample's embedding at the finest level.
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
        self.tiers = nn.ModuleList(
            FrameTier(frame, ratio, dim, n_rnn) for frame, ratio in zip(frames, frame_sizes, strict=True)
        )
        self.embedding = nn.Embedding(num_tokens, embedding_dim)
        self.samples = nn.Conv1d(embedding_dim, dim, frame_sizes[0], bias=False)
        self.hidden = nn.Linear(dim, dim)
        self.output = nn.Linear(dim, num_tokens)

    @property
    def length_multiple(self) -> int:
        """Lengths in :meth:`forward` must be multiples of this: the longest frame."""
        return self.tiers[-1].frame

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (B, num_tokens, L) of inputs ``tokens`` (B, L), int64; column t scores the token after token t.

        Raises:
            UserError: L is not a multiple of ``length_multiple``.
        """
        if tokens.shape[-1] % self.length_multiple:
            raise UserError(f"the length must be a multiple of {self.length_multiple}, got {tokens.shape[-1]} samples")
        return self._advance(tokens, self.initial_state(tokens.shape[0]))[0]

    def initial_state(self, batch_size: int) -> SampleRNNState:
        """The state before the first input."""
        tokens = torch.full((batch_size, self.length_multiple - 1), self.start_token, device=self.device)
        hidden = tuple(tier.initial_hidden.unsqueeze(1).expand(-1, batch_size, -1) for tier in self.tiers)
        conditioning = tuple(
            start.new_zeros(batch_size, tier.ratio, start.shape[-1])
            for tier, start in zip(self.tiers, hidden, strict=True)
        )
        return SampleRNNState(0, tokens, hidden, conditioning)

    def step(self, tokens: Tensor, state: SampleRNNState) -> tuple[Tensor, SampleRNNState]:
        """One input ``tokens`` (B,) from ``state``: logits (B, num_tokens) and the next state."""
        logits, state = self._advance(tokens.unsqueeze(1), state)
        return logits.squeeze(-1), state

    def prefill(self, tokens: Tensor, state: SampleRNNState | None = None) -> tuple[Tensor, SampleRNNState]:
        """Inputs ``tokens`` (B, L), any L, from ``state``: logits (B, num_tokens, L) and the state after them.

        Sample by sample up to the next whole frame of the longest kind, then all whole ones at once, then the rest.
        """
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
        """One sample at any position, or whole longest frames at the beginning of one."""
        length, longest = tokens.shape[1], self.length_multiple
        heard = torch.cat([state.tokens, tokens], dim=1)  # (B, longest - 1 + length)
        amplitudes = 2 * (heard.to(self.output.weight.dtype) / self.start_token - 1)
        hidden, conditioning = list(state.hidden), list(state.conditioning)
        said = None
        for index in reversed(range(len(self.tiers))):
            tier = self.tiers[index]
            if state.position % tier.frame == 0:
                # A frame ends with the first of its inputs: what is known when the first of its samples is predicted.
                count, first = max(1, length // tier.frame), longest - tier.frame
                frames = amplitudes[:, first : first + count * tier.frame].unflatten(1, (count, tier.frame))
                said, hidden[index] = tier(frames, said, hidden[index])
                conditioning[index] = said[:, -tier.ratio :].clone()  # a slice would keep all of it alive
            if length == 1:
                slot = state.position % tier.frame * tier.ratio // tier.frame
                said = conditioning[index][:, slot : slot + 1]
        logits = self._sample_level(heard[:, longest - self.tiers[0].frame :], said)
        position = (state.position + length) % longest
        return logits, SampleRNNState(position, heard[:, length:].clone(), tuple(hidden), tuple(conditioning))

    def _sample_level(self, heard: Tensor, above: Tensor) -> Tensor:
        """Logits (B, num_tokens, L) from inputs (B, frame - 1 + L) and what the finest tier says, (B, L, dim)."""
        x = self.samples(self.embedding(heard).transpose(1, 2)).transpose(1, 2)  # (B, L, dim)
        x = F.relu(self.hidden(F.relu(x + above)))
        return self.output(x).transpose(1, 2)
