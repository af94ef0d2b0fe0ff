"""WaveNet, the autoregressive baseline of the SaShiMi paper: causal gated dilated convolutions (arXiv 1609.03499)."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional as F

from sashimi_diffusion.arguments import Range
from sashimi_diffusion.models.autoregressive_base import AutoregressiveModel
from sashimi_diffusion.models.base import RANGES
from sashimi_diffusion.models.layers import module_list
from sashimi_diffusion.ssm.pointwise import Pointwise


class WaveNetLayer(nn.Module):
    """A gated convolution of two taps, ``dilation`` samples apart, with a residual and a skip output.

    Its state is its last ``dilation`` inputs, (B, residual_channels, dilation).
    """

    def __init__(self, residual_channels: int, dilation_channels: int, skip_channels: int, dilation: int) -> None:
        super().__init__()
        self.dilation = dilation
        self.dilated = Pointwise(2 * residual_channels, 2 * dilation_channels)
        self.residual_output = Pointwise(dilation_channels, residual_channels)
        self.skip_output = Pointwise(dilation_channels, skip_channels)

    def initial_state(self, batch_size: int) -> Tensor:
        """Return the state before the first sample: zeros."""
        weight = self.dilated.weight
        return weight.new_zeros(batch_size, weight.shape[1] // 2, self.dilation)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the next ``x`` (B, R, L), the skip output (B, S, L) and the next state."""
        inputs = torch.cat([state, x], dim=-1)  # (B, R, dilation + L)
        taps = torch.cat([inputs[..., : x.shape[-1]], x], dim=1)  # (B, 2R, L)
        content, gate = self.dilated(taps).chunk(2, dim=1)
        y = torch.tanh(content) * torch.sigmoid(gate)
        # A copy, because a slice would keep all inputs in memory.
        return x + self.residual_output(y), self.skip_output(y), inputs[..., -self.dilation :].clone()


class WaveNetAutoregressive(AutoregressiveModel):
    """WaveNet without conditioning; the default size is that of the SaShiMi paper (4.2M parameters).

    The state holds the past inputs of every layer, so a recurrence step computes one column of each convolution.

    Args:
        num_tokens: number of quantization levels.
        quantization: "mu-law" or "linear", see :mod:`sashimi_diffusion.data.quantization`.
        sample_rate: rate of the waveforms in Hz.
        sample_size: number of samples the model was trained on, and the default length to generate.
        residual_channels, dilation_channels, skip_channels: widths of the residual path, of the gated convolutions and
            of the skip outputs.
        end_channels: width of the layer between the sum of the skip outputs and the logits.
        n_layers: layers per cycle, with the dilations 1, 2, 4, …, 2^(n_layers - 1).
        n_cycles: number of cycles.

    Raises:
        UserError: a value of another type or out of its range.
    """

    ranges: ClassVar[Mapping[str, Range]] = {**RANGES, "n_layers": Range(1, 24)}

    @register_to_config
    def __init__(
        self,
        num_tokens: int = 256,
        quantization: str = "mu-law",
        sample_rate: int = 16000,
        sample_size: int = 16000,
        residual_channels: int = 64,
        dilation_channels: int = 64,
        skip_channels: int = 1024,
        end_channels: int = 512,
        n_layers: int = 10,
        n_cycles: int = 4,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_tokens, residual_channels)
        self.layers = module_list(
            WaveNetLayer(residual_channels, dilation_channels, skip_channels, 2**layer)
            for _ in range(n_cycles)
            for layer in range(n_layers)
        )
        # No output depends on this layer. Without requires_grad_(False), distributed training would wait for its
        # gradient.
        self.layers[-1].residual_output.requires_grad_(False)
        self.end = Pointwise(skip_channels, end_channels)
        self.output = Pointwise(end_channels, num_tokens)

    @staticmethod
    def estimated_parameters(arguments: Mapping[str, Any]) -> int:
        """Return about how many parameters a network with these arguments has, see :class:`WaveformModel`."""
        width, skip = arguments["residual_channels"], arguments["skip_channels"]
        layer = arguments["dilation_channels"] * (5 * width + skip)
        ends = arguments["end_channels"] * (skip + arguments["num_tokens"]) + arguments["num_tokens"] * width
        return arguments["n_layers"] * arguments["n_cycles"] * layer + ends

    @property
    def receptive_field(self) -> int:
        """Number of inputs that a prediction depends on, the latest included."""
        return 1 + sum(layer.dilation for layer in self.layers)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits (B, num_tokens, L) for the inputs ``tokens`` (B, L), see :class:`AutoregressiveModel`."""
        return self.prefill(tokens)[0]

    def initial_state(self, batch_size: int) -> tuple[Tensor, ...]:
        """Return the state before the first input."""
        return tuple(layer.initial_state(batch_size) for layer in self.layers)

    def step(self, tokens: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run one recurrence step: logits (B, num_tokens) and the next state, see :class:`AutoregressiveModel`."""
        logits, state = self.prefill(tokens.unsqueeze(1), state)
        return logits.squeeze(-1), state

    def prefill(self, tokens: Tensor, state: tuple[Tensor, ...] | None = None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Process many inputs: logits (B, num_tokens, L) and the next state, see :class:`AutoregressiveModel`."""
        self.require_length(tokens.shape[-1])
        x = self.embedding(tokens).transpose(1, 2)  # (B, residual_channels, L)
        skips, next_state = x.new_zeros(()), []
        for layer, past in zip(self.layers, state or self.initial_state(tokens.shape[0]), strict=True):
            x, skip, present = layer(x, past)
            skips = skips + skip
            next_state.append(present)
        return self.output(F.relu(self.end(F.relu(skips)))), tuple(next_state)
