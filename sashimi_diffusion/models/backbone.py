"""The SaShiMi backbone: S4 blocks at several rates (arXiv 2202.09729, section 4 and figure 1)."""

import math
from collections.abc import Callable, Sequence

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
        self.unet, self.stage_skip = unet, stage_skip
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
        skips = []
        for blocks, down_pool in zip(self.down, self.down_pools, strict=True):
            for block in blocks:
                skips.append(x)
                x = block(x, conditioning)
            skips.append(x)
            x = down_pool(x)
        center = x
        for block in self.center:
            x = block(x, conditioning)
        x = add(center, x)
        for blocks, up_pool in zip(reversed(self.up), reversed(self.up_pools), strict=True):
            x = add(skips.pop(), up_pool(x))
            stage_input = x
            for block in blocks:
                x = block(x, conditioning)
                if self.unet:
                    x = add(skips.pop(), x)
            if self.stage_skip:
                x = add(stage_input, x)
        return x
