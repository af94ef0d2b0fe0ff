"""A causal backbone run from a state: sample by sample, or a stretch of samples at once."""

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from sashimi_diffusion.models.blocks import Block

if TYPE_CHECKING:
    from sashimi_diffusion.models.backbone import SashimiBackbone


class BackboneState(NamedTuple):
    """All that a causal backbone remembers of the samples before; pools in the order of their rates, the raw one first.

    Args:
        position: samples absorbed so far, modulo the backbone's ``length_multiple``.
        layers: the state of each S4 layer, complex (B, H, N), in the order of ``SashimiBackbone.s4_layers``; None for
            one at rest.
        frames: the frame that each down pool is collecting, (B, H, pool).
        upsampled: what each up pool gives during the present frame, (B, H, pool); zeros in the first one.
    """

    position: int
    layers: tuple[Tensor | None, ...]
    frames: tuple[Tensor, ...]
    upsampled: tuple[Tensor, ...]


class Recurrence:
    """One pass of a causal backbone from ``state``; afterwards :meth:`state` is the one to go on from.

    Takes one sample at any position, or a number of samples that is a multiple of ``length_multiple`` at a position
    that is one. A pooled stage runs once per frame: at the frame's last sample, for the samples of the next frame.
    """

    def __init__(self, backbone: "SashimiBackbone", state: BackboneState) -> None:
        self.backbone, self.position = backbone, state.position
        self._indices = {id(layer): index for index, layer in enumerate(backbone.s4_layers())}
        self._layers, self._frames, self._upsampled = list(state.layers), list(state.frames), list(state.upsampled)

    def __call__(self, x: Tensor) -> Tensor:
        """(B, d_model, L) to (B, d_model, L)."""
        y = self.backbone.stage(0, x, self)
        self.position = (self.position + x.shape[-1]) % self.backbone.length_multiple
        return y

    def state(self) -> BackboneState:
        """The state after the samples that this pass was given."""
        return BackboneState(self.position, tuple(self._layers), tuple(self._frames), tuple(self._upsampled))

    def block(self, block: Block, x: Tensor) -> Tensor:
        """The layers of a block; those with a state move it on."""
        for layer in block:
            x = self._residual(layer, x)
        return x

    def low_rate(self, stage: int, x: Tensor) -> Tensor:
        """What the stages below ``stage`` add to (B, H, L), at its rate."""
        down_pool, up_pool = self.backbone.down_pools[stage], self.backbone.up_pools[stage]
        pool, upsampled = down_pool.pool, self._upsampled[stage]
        if x.shape[-1] > 1:
            low = self.backbone.stage(stage + 1, down_pool(x), self)
            delayed = torch.cat([upsampled, up_pool.unfold_channels(low)], dim=-1)
            self._upsampled[stage] = delayed[..., -pool:].clone()  # a slice would keep all of it alive
            return delayed[..., :-pool]
        slot = self.position // self.backbone.stride(stage) % pool
        frame = self._frames[stage].clone()
        frame[..., slot] = x[..., 0]
        self._frames[stage] = frame
        if slot == pool - 1:
            low = self.backbone.stage(stage + 1, down_pool(frame), self)
            self._upsampled[stage] = up_pool.unfold_channels(low)
        return upsampled[..., slot : slot + 1].clone()

    def _residual(self, layer: nn.Module, x: Tensor) -> Tensor:
        if not hasattr(layer, "s4"):
            return layer(x, None)
        index = self._indices[id(layer.s4)]
        x, self._layers[index] = layer.advance(x, self._layers[index])
        return x
