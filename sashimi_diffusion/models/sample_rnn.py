"""SampleRNN, the recurrent baseline of the SaShiMi paper: recurrent networks at several rates (arXiv 1612.07837)."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional as F

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.models.autoregressive_base import AutoregressiveModel
from sashimi_diffusion.models.layers import module_list


class SampleRNNState(NamedTuple):
    """State of a SampleRNN after some samples; the first tier has the shortest frames.

    Args:
        position: samples processed so far, modulo the longest frame.
        tokens: the latest inputs, (B, longest frame - 1), int64.
        hidden: hidden state of each tier's recurrent network, (n_rnn, B, dim).
        conditioning: output of each tier for its current frame, which conditions the tier below, (B, ratio, dim).
    """

    position: int
    tokens: Tensor
    hidden: tuple[Tensor, ...]
    conditioning: tuple[Tensor, ...]


class FrameTier(nn.Module):
    """A recurrent network that processes one frame of samples at a time and conditions the tier below.

    Args:
        frame: samples in a frame.
        ratio: frames of the tier below in a frame; for the lowest tier, the samples.
        dim: width.
        n_rnn: number of GRU layers.
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
            hidden: hidden state before these frames, (n_rnn, B, dim).

        Returns:
            conditioning of the tier below, (B, n · ratio, dim), and the next hidden state.
        """
        x = self.input(frames)
        x, hidden = self.rnn(x if above is None else x + above, hidden.contiguous())
        return self.output(x).unflatten(-1, (self.ratio, -1)).flatten(1, 2), hidden


class SampleRNN(AutoregressiveModel):
    """SampleRNN without conditioning; the default has three tiers and the size of the SaShiMi paper (35.0M parameters).

    A tier with frames of n samples runs every n samples and processes the n latest inputs. Below the tiers, a
    feed-forward network (the sample level) runs at every sample and processes the latest inputs, as many as a frame of
    the lowest tier. Unlike the official implementations, this one has no weight normalization.

    Args:
        num_tokens: number of quantization levels.
        quantization: "mu-law" or "linear", see :mod:`sashimi_diffusion.data.quantization`.
        sample_rate: rate of the waveforms in Hz.
        sample_size: number of samples the model was trained on, and the default length to generate.
        frame_sizes: samples in a frame of the lowest tier, then frames of each tier in a frame of the next.
        dim: width of all tiers.
        n_rnn: number of GRU layers in each tier.
        embedding_dim: width of the embedding of a token at the sample level.

    Raises:
        UserError: a value of another type or out of its range, or ``frame_sizes`` is empty.
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
        if not frame_sizes:
            raise UserError("frame_sizes is []: expected at least one number, one per tier")
        frames = [math.prod(frame_sizes[: tier + 1]) for tier in range(len(frame_sizes))]
        self.tiers = module_list(
            FrameTier(frame, ratio, dim, n_rnn) for frame, ratio in zip(frames, frame_sizes, strict=True)
        )
        self.embedding = nn.Embedding(num_tokens, embedding_dim)
        self.samples = nn.Conv1d(embedding_dim, dim, frame_sizes[0], bias=False)
        self.hidden = nn.Linear(dim, dim)
        self.output = nn.Linear(dim, num_tokens)

    @staticmethod
    def estimated_parameters(arguments: Mapping[str, Any]) -> int:
        """Return about how many parameters a network with these arguments has, see :class:`WaveformModel`."""
        dim, frame_sizes = arguments["dim"], arguments["frame_sizes"]
        frames = sum(math.prod(frame_sizes[: tier + 1]) for tier in range(len(frame_sizes)))
        tiers = dim * (frames + dim * (sum(frame_sizes) + 6 * arguments["n_rnn"] * len(frame_sizes)))
        samples = arguments["embedding_dim"] * (arguments["num_tokens"] + dim * sum(frame_sizes[:1]))
        return tiers + samples + dim * (dim + arguments["num_tokens"])

    @property
    def length_multiple(self) -> int:
        """The number of samples in the longest frame; the length in :meth:`forward` must be a multiple of it."""
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
        """Process one sample, or, at the beginning of a longest frame, a multiple of its length."""
        length, longest = tokens.shape[1], self.length_multiple
        inputs = torch.cat([state.tokens, tokens], dim=1)  # (B, longest - 1 + length)
        amplitudes = 2 * (inputs.to(self.output.weight.dtype) / self.start_token - 1)
        hidden, conditioning = list(state.hidden), list(state.conditioning)
        above: Tensor | None = None
        for index in reversed(range(len(self.tiers))):
            tier = self.tiers[index]
            if state.position % tier.frame == 0:
                # Input t is sample t - 1. So at the first sample t of a frame, input t is the latest known sample, and
                # the tier processes the inputs that end with it.
                count, first = max(1, length // tier.frame), longest - tier.frame
                frames = amplitudes[:, first : first + count * tier.frame].unflatten(1, (count, tier.frame))
                above, hidden[index] = tier(frames, above, hidden[index])
                conditioning[index] = above[:, -tier.ratio :].clone()  # a slice would keep all frames in memory
            if length == 1:
                slot = state.position % tier.frame * tier.ratio // tier.frame
                above = conditioning[index][:, slot : slot + 1]
        assert above is not None  # the state has the output of the highest tier from position 0 on
        logits = self._sample_level(inputs[:, longest - self.tiers[0].frame :], above)
        position = (state.position + length) % longest
        return logits, SampleRNNState(position, inputs[:, length:].clone(), tuple(hidden), tuple(conditioning))

    def _sample_level(self, inputs: Tensor, above: Tensor) -> Tensor:
        """Return the logits (B, num_tokens, L).

        Args:
            inputs: latest inputs, (B, frame - 1 + L), where frame is that of the lowest tier.
            above: conditioning from the lowest tier, (B, L, dim).
        """
        x = self.samples(self.embedding(inputs).transpose(1, 2)).transpose(1, 2)  # (B, L, dim)
        x = F.relu(self.hidden(F.relu(x + above)))
        return self.output(x).transpose(1, 2)
