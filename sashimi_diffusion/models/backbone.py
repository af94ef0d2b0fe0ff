"""The SaShiMi backbone: S4 blocks at several rates (arXiv 2202.09729, section 4 and figure 1)."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from sashimi_diffusion.models.blocks import (
    Block,
    Conditioning,
    DownPool,
    ResidualFeedForward,
    ResidualS4,
    UpPool,
    add,
    channel_norm,
)
from sashimi_diffusion.models.recurrence import BackboneState, Recurrence


def layers_per_stage(n_layers: int | Sequence[int], n_stages: int) -> list[int]:
    """``n_layers`` as one number per stage, from the raw rate to the centre.

    Raises:
        ValueError: a list of another length, or a negative number.
    """
    layers = [n_layers] * n_stages if isinstance(n_layers, int) else list(n_layers)
    if len(layers) != n_stages or min(layers) < 0:
        raise ValueError(
            f"n_layers must be one number or {n_stages} numbers (one per stage, 0 or more), got {n_layers}"
        )
    return layers


class SashimiBackbone(nn.Module):
    """Blocks going down in rate, at the centre, and back up, with a skip connection at every level.

    One class for both heads. The diffusion denoiser looks both ways and is conditioned; the autoregressive model is
    causal: its pools are delayed by a frame, its layers normalized and skipped separately.

    Args:
        d_model: features at the raw rate; each pooling multiplies them by ``expand``.
        n_layers: blocks per stage, one number or one per stage (the centre last). 0 pools straight on.
        pool: pooling factor between one stage and the next.
        expand: growth of the features at each pooling.
        ff: growth of the features inside a feed-forward layer; 0 leaves these layers out.
        make_s4: makes the S4 layer of a stage from (features, stage index).
        make_mel: makes the mel conditioner of a stage from (features, stage index); None without a mel.
        unet: blocks on the way down too, with a skip connection for every block; otherwise the way down only pools.
        causal: delay the up-pools by a frame.
        split_blocks: skip connections around S4 and feed-forward layers separately (the autoregressive U-net).
        stage_skip: add a stage's input to its output on the way up (the autoregressive model without U-net).
        norm: "scalar" or "layer".
        ff_weight_norm, pool_weight_norm: weight normalization of these linear maps.
        embedding_dim: width of the step embedding added in every S4 layer; None without one.
    """

    def __init__(
        self,
        d_model: int,
        n_layers: int | Sequence[int],
        pool: Sequence[int],
        expand: int,
        ff: int,
        make_s4: Callable[[int, int], nn.Module],
        make_mel: Callable[[int, int], nn.Module] | None = None,
        unet: bool = True,
        causal: bool = False,
        split_blocks: bool = False,
        stage_skip: bool = False,
        norm: str = "scalar",
        ff_weight_norm: bool = True,
        pool_weight_norm: bool = True,
        embedding_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.unet, self.stage_skip, self.causal = unet, stage_skip, causal
        self.length_multiple = math.prod(pool)
        layers = layers_per_stage(n_layers, len(pool) + 1)
        widths = [d_model * expand**stage for stage in range(len(pool) + 1)]

        def make_stage(stage: int) -> nn.ModuleList:
            width = widths[stage]
            blocks = []
            for _ in range(layers[stage]):
                mel = None if make_mel is None else make_mel(width, stage)
                block = [ResidualS4(make_s4(width, stage), channel_norm(norm, width), width, embedding_dim, mel)]
                if ff:
                    block.append(ResidualFeedForward(channel_norm(norm, width), width, ff, ff_weight_norm))
                blocks += [Block([layer]) for layer in block] if split_blocks else [Block(block)]
            return nn.ModuleList(blocks)

        n_pools = len(pool)
        self.down = nn.ModuleList(make_stage(stage) if unet else nn.ModuleList() for stage in range(n_pools))
        self.down_pools = nn.ModuleList(
            DownPool(widths[stage], widths[stage + 1], pool[stage], pool_weight_norm) for stage in range(n_pools)
        )
        self.center = make_stage(n_pools)
        self.up_pools = nn.ModuleList(
            UpPool(widths[stage + 1], widths[stage], pool[stage], pool_weight_norm, causal) for stage in range(n_pools)
        )
        self.up = nn.ModuleList(make_stage(stage) for stage in range(n_pools))

    def forward(self, x: Tensor, conditioning: Conditioning = Conditioning()) -> Tensor:  # noqa: B008 (immutable)
        """(B, d_model, L) to (B, d_model, L); L must be a multiple of ``length_multiple``."""
        return self.stage(0, x, _Parallel(self, conditioning))

    def initial_state(self, batch_size: int) -> BackboneState:
        """The state before the first sample."""
        widths = [up_pool.linear.out_channels // up_pool.pool for up_pool in self.up_pools]
        like = self.down_pools[0].linear.bias if self.down_pools else next(self.parameters())
        sizes = [(batch_size, width, pool.pool) for width, pool in zip(widths, self.up_pools, strict=True)]
        layers = tuple(layer.initial_state(batch_size) for layer in self.s4_layers())
        frames, upsampled = (tuple(like.new_zeros(size) for size in sizes) for _ in range(2))
        return BackboneState(0, layers, frames, upsampled)

    def step(self, x: Tensor, state: BackboneState) -> tuple[Tensor, BackboneState]:
        """One sample (B, d_model) from ``state``: output (B, d_model) and the next state."""
        recurrence = self._recurrence(state)
        return recurrence(x.unsqueeze(-1)).squeeze(-1), recurrence.state()

    def prefill(self, x: Tensor, state: BackboneState | None = None) -> tuple[Tensor, BackboneState]:
        """(B, d_model, L) from ``state``, any L: output (B, d_model, L) and the state after it.

        Whole frames of the slowest stage run at once, through convolutions; what stands before and after them is
        stepped, fewer than ``2 · length_multiple`` samples. None is the state before the first sample.
        """
        length = x.shape[-1]
        if state is None:
            state = self.initial_state(x.shape[0])
            if length >= self.length_multiple:  # a convolution need not add the response to zeros
                state = state._replace(layers=(None,) * len(state.layers))
        recurrence = self._recurrence(state)
        before = min(-state.position % self.length_multiple, length)
        together = (length - before) // self.length_multiple * self.length_multiple
        sizes = [1] * before + [together] * (together > 0) + [1] * (length - before - together)
        outputs = [recurrence(part) for part in x.split(sizes, dim=-1)]
        return torch.cat(outputs, dim=-1), recurrence.state()

    def s4_layers(self) -> list[nn.Module]:
        """The S4 layers: way down, centre, way up, each from the raw rate on; a state lists theirs in this order."""
        stages = [*self.down, self.center, *self.up]
        return [layer.s4 for blocks in stages for block in blocks for layer in block if hasattr(layer, "s4")]

    def stride(self, stage: int) -> int:
        """Samples from one position of ``stage`` to the next."""
        return math.prod(pool.pool for pool in self.down_pools[:stage])

    def stage(self, stage: int, x: Tensor, run: "_Parallel | Recurrence") -> Tensor:
        """``stage`` and all below it, whose blocks and pools ``run`` applies: (B, H, L) to (B, H, L)."""
        if stage == len(self.down_pools):
            center = x
            for block in self.center:
                x = run.block(block, x)
            return add(center, x)
        skips = []
        for block in self.down[stage]:
            skips.append(x)
            x = run.block(block, x)
        x = add(x, run.low_rate(stage, x))
        stage_input = x
        for block in self.up[stage]:
            x = run.block(block, x)
            if self.unet:
                x = add(skips.pop(), x)
        return add(stage_input, x) if self.stage_skip else x

    def _recurrence(self, state: BackboneState) -> Recurrence:
        if not self.causal:
            raise RuntimeError("a backbone that looks both ways has no recurrence")
        return Recurrence(self, state)


class _Parallel:
    """A pass over whole waveforms."""

    def __init__(self, backbone: SashimiBackbone, conditioning: Conditioning) -> None:
        self.backbone, self.conditioning = backbone, conditioning

    def block(self, block: Block, x: Tensor) -> Tensor:
        return block(x, self.conditioning)

    def low_rate(self, stage: int, x: Tensor) -> Tensor:
        low = self.backbone.stage(stage + 1, self.backbone.down_pools[stage](x), self)
        return self.backbone.up_pools[stage](low)
