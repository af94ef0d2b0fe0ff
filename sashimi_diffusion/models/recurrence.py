"""A causal backbone as a recurrence: one sample at a time, or many samples at once from a state.

A stage below a pool runs once per frame of ``pool`` samples, when the last sample of the frame is known. Its output is
used for the next frame. Therefore a recurrence step always runs the stage at the raw rate. It runs a
lower stage only if this sample completes the frame above that stage.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sashimi_diffusion.models.backbone import SashimiBackbone
from sashimi_diffusion.models.blocks import Block, ResidualS4
from sashimi_diffusion.ssm import S4Layer
from sashimi_kernels.torch_backend.pointwise import add


class BackboneState(NamedTuple):
    """State of a causal backbone after some samples.

    Args:
        position: samples processed so far, modulo the backbone's ``length_multiple``.
        layers: state of each S4 layer, complex (B, H, N), in the order of ``SashimiBackbone.s4_layers``; None is the
            zero state.
        frames: the incomplete frame of each down-pool, (B, H, pool), the raw rate first.
        upsampled: output of each up-pool for the current frame, (B, H, pool), the raw rate first; zeros in the first
            frame.
    """

    position: int
    layers: tuple[Tensor | None, ...]
    frames: tuple[Tensor, ...]
    upsampled: tuple[Tensor, ...]


def initial_state(backbone: SashimiBackbone, batch_size: int) -> BackboneState:
    """Return the state before the first sample, all zeros.

    Args:
        backbone: a causal backbone.
        batch_size: number of sequences B.

    Raises:
        RuntimeError: the backbone is not causal.
    """
    layers = tuple(layer.initial_state(batch_size) for layer in _causal_layers(backbone))
    # The frames have the dtype of the pools, which may differ from the dtype of the S4 layers.
    like = next(backbone.down_pools[0].parameters() if backbone.down_pools else backbone.parameters())
    widths = [up_pool.linear.out_channels // up_pool.pool for up_pool in backbone.up_pools]
    sizes = [(batch_size, width, pool.pool) for width, pool in zip(widths, backbone.up_pools, strict=True)]
    frames, upsampled = (tuple(like.new_zeros(size) for size in sizes) for _ in range(2))
    return BackboneState(0, layers, frames, upsampled)


def step(backbone: SashimiBackbone, x: Tensor, state: BackboneState) -> tuple[Tensor, BackboneState]:
    """Run one recurrence step.

    Args:
        backbone: a causal backbone.
        x: one sample, (B, d_model).
        state: state before this sample; it is not changed.

    Returns:
        output (B, d_model) and the next state.

    Raises:
        RuntimeError: the backbone is not causal.
    """
    recurrence = _Recurrence(backbone, state)
    return recurrence.run(x.unsqueeze(-1)).squeeze(-1), recurrence.state()


def prefill(backbone: SashimiBackbone, x: Tensor, state: BackboneState | None) -> tuple[Tensor, BackboneState]:
    """Process many samples from a state; equal to as many recurrence steps, but parallel.

    All complete groups of ``length_multiple`` samples run at once, by convolutions. The samples before and after these
    groups, fewer than ``2 · length_multiple``, run as recurrence steps.

    Args:
        backbone: a causal backbone.
        x: samples, (B, d_model, L), any L of at least 1.
        state: state before these samples, which is not changed; None is the initial state.

    Returns:
        output (B, d_model, L) and the next state.

    Raises:
        RuntimeError: the backbone is not causal.
    """
    batch_size, _, length = x.shape
    multiple = backbone.length_multiple
    if state is None:
        state = initial_state(backbone, batch_size)
        if length >= multiple and batch_size:  # None is faster than zeros: no response to the state is computed
            state = state._replace(layers=(None,) * len(state.layers))
    recurrence = _Recurrence(backbone, state)
    if batch_size == 0:
        return x, state
    before = min(-state.position % multiple, length)
    whole = (length - before) // multiple * multiple
    sizes = [1] * before + [whole] * (whole > 0) + [1] * (length - before - whole)
    outputs = [recurrence.run(part) for part in x.split(sizes, dim=-1)]
    return torch.cat(outputs, dim=-1), recurrence.state()


def _causal_layers(backbone: SashimiBackbone) -> list[S4Layer]:
    """Return the S4 layers of a causal backbone; raise RuntimeError if it is not causal."""
    layers = backbone.s4_layers()
    causal = [layer for layer in layers if isinstance(layer, S4Layer) and not layer.ssm.bidirectional]
    if not backbone.causal_pools or len(causal) < len(layers):
        raise RuntimeError(
            "this backbone has no recurrence: its pools or S4 layers look ahead; use forward, or create it with "
            "causal_pools=True and unidirectional S4 layers"
        )
    return causal


class _Recurrence:
    """A causal backbone with its current state."""

    def __init__(self, backbone: SashimiBackbone, state: BackboneState) -> None:
        self.backbone, self.position = backbone, state.position
        self.layers: dict[nn.Module, Tensor | None] = dict(zip(_causal_layers(backbone), state.layers, strict=True))
        self.frames, self.upsampled = list(state.frames), list(state.upsampled)

    def state(self) -> BackboneState:
        """Return the current state."""
        return BackboneState(self.position, tuple(self.layers.values()), tuple(self.frames), tuple(self.upsampled))

    def run(self, x: Tensor) -> Tensor:
        """Process features (B, d_model, L) and return the output of the same shape.

        L is 1, or a multiple of ``length_multiple`` if the position is 0. The layers run in the order of
        :meth:`SashimiBackbone.forward`.
        """
        backbone, length = self.backbone, x.shape[-1]
        skips: list[Tensor] = []
        low: Tensor | None = x  # features at the current stage; None where this sample completes no frame
        depth = 0
        while low is not None and depth < len(backbone.down_pools):
            for block in backbone.down[depth]:
                skips.append(low)
                low = self._advance(block, low)
            skips.append(low)
            low = self._pool_down(depth, low)
            depth += 1
        if low is not None:
            center = low
            for block in backbone.center:
                low = self._advance(block, low)
            low = add(center, low)
        for stage in reversed(range(depth)):
            skip = skips.pop()
            low = stage_input = add(skip, self._pool_up(stage, low, skip.shape[-1]))
            for block in backbone.up[stage]:
                low = self._advance(block, low)
                if backbone.unet:
                    low = add(skips.pop(), low)
            if backbone.stage_skip:
                low = add(stage_input, low)
        self.position = (self.position + length) % backbone.length_multiple
        assert low is not None  # the stage at the raw rate always runs
        return low

    def _advance(self, block: Block, x: Tensor) -> Tensor:
        """Run a block from the current states of its S4 layers, and update these states."""
        for layer in block:
            if isinstance(layer, ResidualS4):
                x, self.layers[layer.s4] = layer.advance(x, self.layers[layer.s4])
            else:
                x = layer(x)
        return x

    def _pool_down(self, stage: int, x: Tensor) -> Tensor | None:
        """Return the input of the next lower stage; None if ``x`` is one sample that does not complete a frame."""
        down_pool = self.backbone.down_pools[stage]
        if x.shape[-1] > 1:
            return down_pool(x)
        slot = self._slot(stage)
        frame = self.frames[stage].clone()
        frame[..., slot] = x[..., 0]
        self.frames[stage] = frame
        return down_pool(frame) if slot == down_pool.pool - 1 else None

    def _pool_up(self, stage: int, low: Tensor | None, length: int) -> Tensor:
        """Return the samples of the current frame from an up-pool, (B, H, length), and store those of the next frame.

        Args:
            stage: index of the stage above the up-pool.
            low: features of the stage below it; None if that stage did not run.
            length: number of samples to return.
        """
        up_pool, upsampled = self.backbone.up_pools[stage], self.upsampled[stage]
        following = [] if low is None else [up_pool.unfold_channels(low)]  # samples of the next frames
        if length > 1:
            delayed = torch.cat([upsampled, *following], dim=-1)
            self.upsampled[stage] = delayed[..., -up_pool.pool :].clone()  # a slice would keep all samples in memory
            return delayed[..., : -up_pool.pool]
        slot = self._slot(stage)
        if following:
            self.upsampled[stage] = following[0]
        return upsampled[..., slot : slot + 1].clone()

    def _slot(self, stage: int) -> int:
        """Return the index of the current sample in its frame at ``stage``."""
        pools = [down_pool.pool for down_pool in self.backbone.down_pools]
        return self.position // math.prod(pools[:stage]) % pools[stage]
