"""The SaShiMi backbone: S4 blocks at several rates (arXiv 2202.09729, section 4 and figure 1)."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sashimi_diffusion.models.blocks import (
    S4,
    Block,
    DownPool,
    LayerInputs,
    ResidualFeedForward,
    ResidualS4,
    UpPool,
    channel_norm,
)
from sashimi_diffusion.models.layers import module_list
from sashimi_diffusion.models.overlapping_pools import (
    OverlappingDownPool,
    OverlappingUpPool,
    overlapping_pools_like,
)
from sashimi_diffusion.ssm import S4Layer
from sashimi_diffusion.ssm.cache import Cached
from sashimi_diffusion.ssm.convolution import Operator, convolution_operators
from sashimi_diffusion.ssm.precision import in_autocast_dtype, without_autocast
from sashimi_kernels import layout
from sashimi_kernels.torch_backend.pointwise import add

MAX_LAYERS = 512
"""The largest number of blocks in all stages of one direction."""


class SashimiBackbone(Cached):
    """A U-shaped network of S4 and feed-forward layers, with skip connections.

    A stage is a sequence of blocks at one rate. Down-pools lead from the raw rate (stage 0) to the lowest rate (the
    center), up-pools lead back to the raw rate. A pool with factor p merges p neighboring samples, which form a frame.

    Both kinds of models use this class. A denoiser is bidirectional and conditioned. An autoregressive model is causal:
    its S4 layers are unidirectional, and its up-pools are delayed by one frame.

    Args:
        d_model: features at the raw rate; each pooling multiplies them by ``expand``.
        n_layers: blocks in a stage, one number for all stages or one for each (the raw rate first, the center last). A
            stage may have no blocks.
        pool: pooling factors, one between each stage and the next.
        expand: factor by which each pooling multiplies the features.
        ff: factor by which a feed-forward layer multiplies the features inside; 0 leaves these layers out.
        make_s4: function of (features, stage index) that returns an S4 layer.
        make_mel: function of (features, stage index) that returns a mel upsampler; None without a mel spectrogram.
        unet: True has blocks on the way down, too, and a skip connection around every block. False only pools on the
            way down.
        causal_pools: delay the up-pools by one frame, which every autoregressive model needs. Delayed up-pools with
            bidirectional S4 layers are the bidirectional network of the official stand-alone file
            ``models/sashimi/sashimi.py``, which is not causal and has no recurrence.
        split_blocks: skip connections around S4 and feed-forward layers separately (the autoregressive U-net).
        stage_skip: add the input of a stage to its output on the way up (the autoregressive model without U-net).
        norm: "scalar" or "layer".
        ff_weight_norm, pool_weight_norm: weight normalization of the feed-forward layers and of the pools.
        pooling: "frames", as published, or "overlapping": a pool with factor p looks at 2p neighboring samples, and
            the output of an up-pool has no steps between its frames. Overlapping pools are not causal.
        embedding_dim: width of the step embedding that every S4 layer receives; None without one.

    Raises:
        ValueError: ``norm`` or ``pooling`` is unknown, ``n_layers`` does not fit ``pool``, no stage has a layer, or
            the pools are to be causal and overlapping.
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
        pooling: str = "frames",
    ) -> None:
        super().__init__()
        self.unet, self.stage_skip, self.causal_pools = unet, stage_skip, causal_pools
        self.length_multiple = math.prod(pool)
        self.rates = [math.prod(pool[:stage]) for stage in range(len(pool) + 1)]  # samples per position of each stage
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
        pools = [
            create_pools(pooling, widths[stage], widths[stage + 1], pool[stage], pool_weight_norm, causal_pools)
            for stage in range(n_pools)
        ]
        self.down_pools = module_list(down for down, _ in pools)
        self.center = make_stage(n_pools)
        self.up_pools = module_list(up for _, up in pools)
        self.up = module_list(make_stage(stage) for stage in range(n_pools))

    def use_overlapping_pools(self) -> None:
        """Replace all pools by overlapping ones, see :func:`.overlapping_pools_like`."""
        pools = [overlapping_pools_like(*pair) for pair in zip(self.down_pools, self.up_pools, strict=True)]
        self.down_pools = module_list(down for down, _ in pools)
        self.up_pools = module_list(up for _, up in pools)

    def forward(self, x: Tensor, embedding: Tensor | None = None, mel: Tensor | None = None) -> Tensor:
        """Map features to features at the raw rate.

        Args:
            x: features, (B, d_model, L); L must be a multiple of ``length_multiple``.
            embedding: embedding of the diffusion step (and labels), (B, embedding_dim); None without one.
            mel: log-mel spectrogram, (B, mel_channels, frames); None without one.

        Returns:
            (B, d_model, L).
        """
        if x.shape[0] == 0:
            return x  # there is no Fourier transform of an empty batch
        x = in_autocast_dtype(x)
        inputs = self._inputs(x, embedding, mel)
        skips = []

        for blocks, block_inputs, down_pool in zip(self.down, inputs.down, self.down_pools, strict=True):
            for block, own in zip(blocks, block_inputs, strict=True):
                skips.append(x)
                x = self._run(block, x, own)  # (B, H, L)
            skips.append(x)
            x = down_pool(x)  # (B, expand · H, L / pool)

        center = x  # (B, expand^stages · d_model, L / length_multiple)
        for block, own in zip(self.center, inputs.center, strict=True):
            x = self._run(block, x, own)
        x = add(center, x)

        ways_up = zip(reversed(self.up), reversed(inputs.up), reversed(self.up_pools), strict=True)
        for blocks, block_inputs, up_pool in ways_up:
            x = stage_input = add(skips.pop(), up_pool(x))  # (B, H, L)
            for block, own in zip(blocks, block_inputs, strict=True):
                x = self._run(block, x, own, skips.pop() if self.unet else None)
            if self.stage_skip:
                x = add(stage_input, x)
        return x

    def _run(self, block: Block, x: Tensor, inputs: LayerInputs, skip: Tensor | None = None) -> Tensor:
        """Run a block, under gradient checkpointing if it is enabled."""
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(block, x, inputs, skip)
        return block(x, inputs, skip)

    def _inputs(self, x: Tensor, embedding: Tensor | None, mel: Tensor | None) -> "BackboneInputs":
        """Return the inputs of every block."""
        operators, biases = self._operators(x), self._biases(embedding)
        following = iter([LayerInputs(*own) for own in zip(biases, [mel] * len(biases), operators, strict=True)])

        def of_stage(blocks: Sequence[Block]) -> list[LayerInputs]:
            return [next(following) if isinstance(block[0], ResidualS4) else LayerInputs() for block in blocks]

        down = [of_stage(blocks) for blocks in self.down]
        return BackboneInputs(down, of_stage(self.center), [of_stage(blocks) for blocks in self.up])

    def _operators(self, x: Tensor) -> list[Operator | None]:
        """Return the convolution operators of the S4 layers, or None for a layer that computes its own.

        On a GPU, one computation for all layers takes a fraction of the launches. On a CPU, one layer after the other
        is faster, because its matrices stay in the caches.
        """
        layers = self.s4_layers()
        spaces = [layer.ssm for layer in layers if isinstance(layer, S4Layer)]
        if not layout.samples_adjacent(x) or len(spaces) < len(layers):
            return [None] * len(layers)
        batch, _, length = x.shape
        lengths = [length // self.rates[stage] for stage in self._stages_of_s4_layers()]

        def compute() -> list[Operator | None]:
            return [*convolution_operators(spaces, x.dtype, batch, lengths, 1.0)]

        return self.cache.get(self, "operators", (x.dtype, batch, length, spaces[0].backend), compute)

    def _biases(self, embedding: Tensor | None) -> Sequence[Tensor | None]:
        """Return the projection of the step embedding for every S4 layer, (B, H), by one matrix product for all."""
        layers = self.residual_s4_layers()
        projections = [layer.step_projection for layer in layers if layer.step_projection is not None]
        if embedding is None or not projections:
            return [None] * len(layers)

        def concatenated() -> tuple[Tensor, Tensor]:
            return torch.cat([one.weight for one in projections]), torch.cat([one.bias for one in projections])

        weight, bias = self.cache.get(self, "step projections", None, concatenated)
        widths = [one.out_features for one in projections]
        if not layout.samples_adjacent(embedding):
            return F.linear(embedding, weight, bias).split(widths, dim=-1)
        with without_autocast(embedding.device):  # Triton's norms add these biases in float32
            return F.linear(embedding.to(weight.dtype), weight, bias).split(widths, dim=-1)

    def residual_s4_layers(self) -> list[ResidualS4]:
        """Return the residual S4 layers of the way down, the center and the way up; both ways begin at the raw rate."""
        stages = [*self.down, self.center, *self.up]
        return [layer for blocks in stages for block in blocks for layer in block if isinstance(layer, ResidualS4)]

    def _stages_of_s4_layers(self) -> list[int]:
        """Return the index of the stage of each of ``residual_s4_layers``; stage 0 has the raw rate."""
        stages = [*enumerate(self.down), (len(self.down), self.center), *enumerate(self.up)]
        return [stage for stage, blocks in stages for block in blocks if isinstance(block[0], ResidualS4)]

    def s4_layers(self) -> list[S4]:
        """Return the S4 layers in the order of ``residual_s4_layers``."""
        return [layer.s4 for layer in self.residual_s4_layers()]


class BackboneInputs(NamedTuple):
    """Inputs of every block, in one list for each stage on the way down, the center, and each stage on the way up."""

    down: list[list[LayerInputs]]
    center: list[LayerInputs]
    up: list[list[LayerInputs]]


def create_pools(pooling: str, upper: int, lower: int, pool: int, weight_norm: bool, causal: bool) -> tuple[Any, Any]:
    """Return the down-pool and the up-pool between two stages.

    Args:
        pooling: "frames" or "overlapping", see :class:`SashimiBackbone`.
        upper, lower: features of the stage at the higher and at the lower rate.
        pool: the pooling factor.
        weight_norm: weight normalization of the pools.
        causal: delay the up-pool by one frame.

    Raises:
        ValueError: ``pooling`` is unknown, or "overlapping" for causal pools.
    """
    if pooling == "frames":
        return DownPool(upper, lower, pool, weight_norm), UpPool(lower, upper, pool, weight_norm, causal)
    if pooling != "overlapping":
        raise ValueError(f"unknown pooling {pooling!r}: expected 'frames' or 'overlapping'")
    if causal:
        raise ValueError("overlapping pools look at later samples: a causal network needs pooling='frames'")
    return OverlappingDownPool(upper, lower, pool, weight_norm), OverlappingUpPool(lower, upper, pool, weight_norm)


def estimated_parameters(arguments: Mapping[str, Any], per_feature: int) -> int:
    """Return about how many parameters a backbone has: the weights of its linear maps and state spaces.

    Args:
        arguments: arguments of :class:`SashimiBackbone` by name, with ``n_state``.
        per_feature: further parameters of a block for each feature.
    """
    pool, expand = arguments["pool"], arguments["expand"]
    per_feature += 4 * arguments["n_state"]
    total = 0
    for stage, count in enumerate(layers_per_stage(arguments["n_layers"], len(pool) + 1)):
        width = arguments["d_model"] * expand**stage
        blocks = count if stage == len(pool) or not arguments["unet"] else 2 * count
        total += blocks * width * ((2 + 2 * arguments["ff"]) * width + per_feature)
        if stage < len(pool):
            samples = pool[stage] if arguments.get("pooling", "frames") == "frames" else 2 * pool[stage]
            total += 2 * samples * expand * width**2
    return total


def layers_per_stage(n_layers: int | Sequence[int], n_stages: int) -> list[int]:
    """Return ``n_layers`` as one number per stage, from the raw rate to the center.

    Raises:
        ValueError: ``n_layers`` does not have ``n_stages`` numbers, a number is negative, or there are too many layers
            or none.
    """
    layers = [n_layers] * n_stages if isinstance(n_layers, int) else list(n_layers)
    if len(layers) != n_stages or min(layers) < 0:
        raise ValueError(
            f"n_layers must be one number or {n_stages} numbers (one per stage, 0 or more), got {n_layers}"
        )
    if not any(layers):
        raise ValueError(f"n_layers is {n_layers}: expected at least one layer in one of the {n_stages} stages")
    if sum(layers) > MAX_LAYERS:
        raise ValueError(f"n_layers gives {sum(layers)} layers in {n_stages} stages: expected at most {MAX_LAYERS}")
    return layers
