"""A causal backbone as a recurrence: sample by sample, or many samples at once from a state.

A pooled stage runs once per frame: at the last sample of the frame, for the samples of the next frame. Therefore a
recurrence step goes down only as far as frames are complete.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sashimi_diffusion.models.backbone import SashimiBackbone
from sashimi_diffusion.models.blocks import Block, ResidualS4, add
from sashimi_diffusion.ssm import S4Layer


class BackboneState(NamedTuple):
    """State of a causal backbone after some samples; the pools are in the order of their rates, the raw rate first.

    Args:
        position: samples processed so far, modulo the backbone's ``length_multiple``.
        layers: state of each S4 layer, complex (B, H, N), in the order of ``SashimiBackbone.s4_layers``; None for the
            state at rest.
        frames: frame that each down-pool is collecting, (B, H, pool).
        upsampled: output of each up-pool for the current frame, (B, H, pool); zeros in the first frame.
    """

    position: int
    layers: tuple[Tensor | None, ...]
    frames: tuple[Tensor, ...]
    upsampled: tuple[Tensor, ...]


def initial_state(backbone: SashimiBackbone, batch_size: int) -> BackboneState:
    """Return the state before the first sample.

    Raises:
        RuntimeError: the backbone is not causal.
    """
    layers = tuple(layer.initial_state(batch_size) for layer in _causal_layers(backbone))
    # The state spaces may have another dtype than the pools.
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
        state: state before it; it is not changed.

    Returns:
        output (B, d_model) and the next state.

    Raises:
        RuntimeError: the backbone is not causal.
    """
    recurrence = _Recurrence(backbone, state)
    return recurrence.run(x.unsqueeze(-1)).squeeze(-1), recurrence.state()


def prefill(backbone: SashimiBackbone, x: Tensor, state: BackboneState | None) -> tuple[Tensor, BackboneState]:
    """Process many samples from a state; equal to as many recurrence steps, but parallel.

    Whole frames of the slowest stage run at once, through convolutions. The samples before and after them, fewer than
    ``2 · length_multiple``, run as recurrence steps.

    Args:
        backbone: a causal backbone.
        x: samples, (B, d_model, L), any L of at least 1.
        state: state before them, which is not changed; None is the state before the first sample.

    Returns:
        output (B, d_model, L) and the next state.

    Raises:
        RuntimeError: the backbone is not causal.
    """
    batch_size, _, length = x.shape
    multiple = backbone.length_multiple
    if state is None:
        state = initial_state(backbone, batch_size)
        if length >= multiple and batch_size:  # a convolution from rest need not add the response to a state
            state = state._replace(layers=(None,) * len(state.layers))
    recurrence = _Recurrence(backbone, state)
    if batch_size == 0:
        return x, state
    before = min(-state.position % multiple, length)
    together = (length - before) // multiple * multiple
    sizes = [1] * before + [together] * (together > 0) + [1] * (length - before - together)
    outputs = [recurrence.run(part) for part in x.split(sizes, dim=-1)]
    return torch.cat(outputs, dim=-1), recurrence.state()


def _causal_layers(backbone: SashimiBackbone) -> list[S4Layer]:
    """Return the S4 layers of a causal backbone."""
    layers = backbone.s4_layers()
    causal = [layer for layer in layers if isinstance(layer, S4Layer) and not layer.ssm.bidirectional]
    if not backbone.causal_pools or len(causal) < len(layers):
        raise RuntimeError(
            "this backbone has no recurrence: its pools or S4 layers look ahead; use forward, or make it with "
            "causal_pools=True and unidirectional S4 layers"
        )
    return causal


class _Recurrence:
    """A causal backbone and its current state."""

    def __init__(self, backbone: SashimiBackbone, state: BackboneState) -> None:
        self.backbone, self.position = backbone, state.position
        self.layers: dict[nn.Module, Tensor | None] = dict(zip(_causal_layers(backbone), state.layers, strict=True))
        self.frames, self.upsampled = list(state.frames), list(state.upsampled)

    def state(self) -> BackboneState:
        """Return the current state."""
        return BackboneState(self.position, tuple(self.layers.values()), tuple(self.frames), tuple(self.upsampled))

    def run(self, x: Tensor) -> Tensor:
        """Process (B, d_model, L): one sample, or a multiple of ``length_multiple`` at the beginning of a frame.

        The order is that of :meth:`SashimiBackbone.forward`.
        """
        backbone, length = self.backbone, x.shape[-1]
        skips: list[Tensor] = []
        low: Tensor | None = x  # input of a stage; None if the frame of the stage above is incomplete
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
        assert low is not None  # the raw rate always runs
        return low

    def _advance(self, block: Block, x: Tensor) -> Tensor:
        for layer in block:
            if isinstance(layer, ResidualS4):
                x, self.layers[layer.s4] = layer.advance(x, self.layers[layer.s4])
            else:
                x = layer(x, None)
        return x

    def _pool_down(self, stage: int, x: Tensor) -> Tensor | None:
        """Return the input of the next stage, or None if ``x`` (B, H, 1) does not complete a frame."""
        down_pool = self.backbone.down_pools[stage]
        if x.shape[-1] > 1:
            return down_pool(x)
        slot = self._slot(stage)
        frame = self.frames[stage].clone()
        frame[..., slot] = x[..., 0]
        self.frames[stage] = frame
        return down_pool(frame) if slot == down_pool.pool - 1 else None

    def _pool_up(self, stage: int, low: Tensor | None, length: int) -> Tensor:
        """Return the delayed output (B, H, length) of the next stage, and keep what belongs to the next frame."""
        up_pool, upsampled = self.backbone.up_pools[stage], self.upsampled[stage]
        following = [] if low is None else [up_pool.unfold_channels(low)]  # samples of the next frames
        if length > 1:
            delayed = torch.cat([upsampled, *following], dim=-1)
            self.upsampled[stage] = delayed[..., -up_pool.pool :].clone()  # a slice would keep all of it alive
            return delayed[..., : -up_pool.pool]
        slot = self._slot(stage)
        if following:
            self.upsampled[stage] = following[0]
        return upsampled[..., slot : slot + 1].clone()

    def _slot(self, stage: int) -> int:
        """Return the place of the current sample in the frame of ``stage``."""
        pools = [down_pool.pool for down_pool in self.backbone.down_pools]
        return self.position // math.prod(pools[:stage]) % pools[stage]
