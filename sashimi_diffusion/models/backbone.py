"""The SaShiMi backbone: S4 blocks at several rates (arXiv 2202.09729, section 4 and figure 1)."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from sashimi_diffusion.models.blocks import (
    S4,
    Block,
    Conditioning,
    DownPool,
    ResidualFeedForward,
    ResidualS4,
    UpPool,
    add,
    channel_norm,
)
from sashimi_diffusion.models.layers import module_list


class SashimiBackbone(nn.Module):
    """Blocks of S4 and feed-forward layers: down in rate, at the center, and up again, with skip connections.

    Both kinds of models use this class. A denoiser is bidirectional and conditioned. An autoregressive model is causal:
    its S4 layers see the past only, and its up-pools are delayed by one frame.

    Args:
        d_model: features at the raw rate; each pooling multiplies them by ``expand``.
        n_layers: blocks per stage, one number for all or one per stage (the center last). A stage may have no blocks.
        pool: pooling factor between each stage and the next.
        expand: growth of the features at each pooling.
        ff: growth of the features inside a feed-forward layer; 0 leaves these layers out.
        make_s4: returns the S4 layer of a stage for (features, stage index).
        make_mel: returns the mel upsampler of a stage for (features, stage index); None without a mel spectrogram.
        unet: blocks on the way down too, and a skip connection around every block; otherwise the way down only pools.
        causal_pools: delay the up-pools by one frame, as every autoregressive model needs it. With bidirectional S4
            layers this is the bidirectional network of the official stand-alone file ``models/sashimi/sashimi.py``,
            which is not causal and has no recurrence.
        split_blocks: skip connections around S4 and feed-forward layers separately (the autoregressive U-net).
        stage_skip: add the input of a stage to its output on the way up (the autoregressive model without U-net).
        norm: "scalar" or "layer".
        ff_weight_norm, pool_weight_norm: weight normalization of the feed-forward layers and of the pools.
        embedding_dim: width of the step embedding that every S4 layer receives; None without one.
    """

    _gradient_checkpointing_func: Callable[..., Tensor]  # set by diffusers, together with gradient_checkpointing

    def __init__(
        self,
        d_model: int,
        n_layers: int | Sequence[int],
        pool: Sequence[int],
        expand: int,
        ff: int,
        make_s4: Callable[[int, int], S4],
        make_mel: Callable[[int, int], nn.Module] | None = None,
        unet: bool = True,
        causal_pools: bool = False,
        split_blocks: bool = False,
        stage_skip: bool = False,
        norm: str = "scalar",
        ff_weight_norm: bool = True,
        pool_weight_norm: bool = True,
        embedding_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.unet, self.stage_skip, self.causal_pools = unet, stage_skip, causal_pools
        self.length_multiple = math.prod(pool)
        self.gradient_checkpointing = False
        n_pools = len(pool)
        layers = layers_per_stage(n_layers, n_pools + 1)
        widths = [d_model * expand**stage for stage in range(n_pools + 1)]

        def make_stage(stage: int) -> Sequence[Block]:
            width = widths[stage]
            blocks: list[Block] = []
            for _ in range(layers[stage]):
                mel = None if make_mel is None else make_mel(width, stage)
                s4 = ResidualS4(make_s4(width, stage), channel_norm(norm, width), width, embedding_dim, mel)
                block: list[nn.Module] = [s4]
                if ff:
                    block.append(ResidualFeedForward(channel_norm(norm, width), width, ff, ff_weight_norm))
                blocks += [Block([layer]) for layer in block] if split_blocks else [Block(block)]
            return module_list(blocks)

        self.down = module_list(make_stage(stage) if unet else module_list([]) for stage in range(n_pools))
        self.down_pools = module_list(
            DownPool(widths[stage], widths[stage + 1], pool[stage], pool_weight_norm) for stage in range(n_pools)
        )
        self.center = make_stage(n_pools)
        self.up_pools = module_list(
            UpPool(widths[stage + 1], widths[stage], pool[stage], pool_weight_norm, causal_pools)
            for stage in range(n_pools)
        )
        self.up = module_list(make_stage(stage) for stage in range(n_pools))

    def forward(self, x: Tensor, conditioning: Conditioning = Conditioning()) -> Tensor:  # noqa: B008 (immutable)
        """Map (B, d_model, L) to (B, d_model, L); L must be a multiple of ``length_multiple``."""
        if x.shape[0] == 0:
            return x  # there is no Fourier transform of an empty batch
        skips = []

        for blocks, down_pool in zip(self.down, self.down_pools, strict=True):
            for block in blocks:
                skips.append(x)
                x = self._run(block, x, conditioning)  # (B, H, L)
            skips.append(x)
            x = down_pool(x)  # (B, expand · H, L / pool)

        center = x  # (B, expand^stages · d_model, L / length_multiple)
        for block in self.center:
            x = self._run(block, x, conditioning)
        x = add(center, x)

        for blocks, up_pool in zip(reversed(self.up), reversed(self.up_pools), strict=True):
            x = stage_input = add(skips.pop(), up_pool(x))  # (B, H, L)
            for block in blocks:
                x = self._run(block, x, conditioning)
                if self.unet:
                    x = add(skips.pop(), x)
            if self.stage_skip:
                x = add(stage_input, x)
        return x

    def _run(self, block: Block, x: Tensor, conditioning: Conditioning) -> Tensor:
        """Run a block, under gradient checkpointing if it is enabled."""
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(block, x, conditioning)
        return block(x, conditioning)

    def s4_layers(self) -> list[S4]:
        """Return the S4 layers: way down, center, way up, each from the raw rate on."""
        stages = [*self.down, self.center, *self.up]
        return [layer.s4 for blocks in stages for block in blocks for layer in block if isinstance(layer, ResidualS4)]


def layers_per_stage(n_layers: int | Sequence[int], n_stages: int) -> list[int]:
    """Return ``n_layers`` as one number per stage, from the raw rate to the center.

    Raises:
        ValueError: a list of another length, or a negative number.
    """
    layers = [n_layers] * n_stages if isinstance(n_layers, int) else list(n_layers)
    if len(layers) != n_stages or min(layers) < 0:
        raise ValueError(
            f"n_layers must be one number or {n_stages} numbers (one per stage, 0 or more), got {n_layers}"
        )
    return layers
