"""A model flattened for the compiled step: one array of weights, one table of operations.

Activations, weights and states are float32 arrays without structure; an operation is a row of whole numbers that says
what to do and where its operands begin. So one compiled loop runs every topology: any stages, layers, pools and norms.
"""

from collections.abc import Iterator
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sashimi_diffusion.generation.numba_engine.products import packed_shares
from sashimi_diffusion.generation.numba_engine.spans import SPAN
from sashimi_diffusion.generation.numba_engine.vectors import LANES, aligned_zeros, whole_vectors

COLUMNS = 12


class Kind(IntEnum):
    """What a row of the table does, and what its other columns hold.

    Columns: 0 kind, 1 stage, 2 width H of the stage, 3 norm (0 scalar, 1 layer), 4 begin of the weights, 5 begin of the
    state or buffer, 6 N or inner width, 7 pooling factor, 8 row to go on at while a frame is incomplete, 9 begin of the
    span.
    """

    S4_NPLR = 0
    S4_DIAGONAL = 1
    FEED_FORWARD = 2
    SAVE = 3
    ADD = 4
    DOWN = 5
    UP = 6
    MERGE = 7


class Program(NamedTuple):
    """A flattened model.

    Args:
        shares: threads that can share the features.
        operations: table of rows, int64 (rows, COLUMNS).
        weights: all parameters in the order of use, float32.
        widths: features of each stage, int64.
        buffer_size: floats per stream for skip connections, frames and the outputs of up pools.
        s4_offsets: begin of each S4 layer's state in floats per stream, in the order of the model's state.
        state_size: floats per stream for all of them.
        span_size: floats per stream for the spans of all S4 layers, see :func:`state_step`.
        frame_offsets, upsampled_offsets: begin of each pool's frame and outputs in the buffer.
        pools: pooling factors.
        embedding: begin of the embedding (num_tokens, H) in the weights.
        head: begin of the last norm's gain and offset and of the output's linear map.
        num_tokens: number of levels.
    """

    shares: int
    operations: np.ndarray
    weights: np.ndarray
    widths: np.ndarray
    buffer_size: int
    s4_offsets: list[int]
    state_size: int
    span_size: int
    frame_offsets: list[int]
    upsampled_offsets: list[int]
    pools: list[int]
    embedding: int
    head: int
    num_tokens: int


class _Builder:
    def __init__(self, shares: int) -> None:
        self.shares = shares
        self.rows: list[list[int]] = []
        self.parts: list[np.ndarray] = []
        self.size = self.buffer_size = self.span_size = 0

    def add(self, kind: Kind, *columns: int) -> int:
        self.rows.append([kind, *columns, *[0] * (COLUMNS - 1 - len(columns))])
        return len(self.rows) - 1

    def store(self, *parts: Tensor | np.ndarray) -> int:
        """Each part begins with a whole vector."""
        begin = self.size
        for part in parts:
            numbers = (part if isinstance(part, np.ndarray) else _numbers(part)).ravel()
            self.parts.append(np.pad(numbers, (0, -numbers.size % LANES)))
            self.size += self.parts[-1].size
        return begin

    def weights(self) -> np.ndarray:
        """All that was stored."""
        return np.concatenate(self.parts, out=aligned_zeros(self.size))

    def buffer(self, size: int) -> int:
        begin, self.buffer_size = self.buffer_size, self.buffer_size + whole_vectors(size)
        return begin

    def span(self, width: int) -> int:
        begin, self.span_size = self.span_size, self.span_size + SPAN * whole_vectors(width)
        return begin


@torch.no_grad()
def flatten(model: Any, shares: int) -> Program:
    """The program of a ``SashimiAutoregressive`` in evaluation mode, for as many threads that share the features.

    Of two maps in a row, the first lies by outputs and the second by inputs, so that a thread can do its share of both
    before it needs anything from the others.
    """
    backbone, build = model.backbone, _Builder(shares)
    layers = backbone.s4_layers()
    sizes = [whole_vectors(layer.ssm.d_model) * layer.ssm.n_state for layer in layers]
    offsets = {id(layer): begin for layer, begin in zip(layers, np.cumsum([0, *sizes[:-1]]).tolist(), strict=True)}
    pools = [pool.pool for pool in backbone.down_pools]
    widths = [pool.linear.out_channels // pool.pool for pool in backbone.up_pools]
    widths.append(backbone.down_pools[-1].linear.out_channels if pools else model.config.d_model)
    frames = [build.buffer(width * pool) for width, pool in zip(widths, pools, strict=False)]
    upsampled = [build.buffer(width * pool) for width, pool in zip(widths, pools, strict=False)]

    embedding = build.store(model.embedding.weight)
    _add_stage(build, backbone, 0, widths, offsets, frames, upsampled)
    head = build.store(model.output_norm.weight, model.output_norm.bias, _linear(model.output))
    return Program(
        shares,
        np.array(build.rows, dtype=np.int64).reshape(-1, COLUMNS),
        build.weights(),
        np.array(widths, dtype=np.int64),
        build.buffer_size,
        [offsets[id(layer)] for layer in layers],
        sum(sizes),
        build.span_size,
        frames,
        upsampled,
        pools,
        embedding,
        head,
        model.config.num_tokens,
    )


def _add_stage(
    build: _Builder,
    backbone: Any,
    stage: int,
    widths: list[int],
    offsets: dict[int, int],
    frames: list[int],
    upsampled: list[int],
) -> None:
    """The rows of a stage and all below it, in the order of ``SashimiBackbone.stage``."""
    width = widths[stage]

    def blocks(modules: Any) -> Iterator[None]:
        for block in modules:
            for layer in block:
                _add_layer(build, stage, width, layer, offsets)
            yield

    def save() -> int:
        begin = build.buffer(width)
        build.add(Kind.SAVE, stage, width, 0, 0, begin)
        return begin

    if stage == len(backbone.down_pools):
        center = save()
        list(blocks(backbone.center))
        build.add(Kind.ADD, stage, width, 0, 0, center)
        return
    skips = []
    for block in backbone.down[stage]:
        skips.append(save())
        list(blocks([block]))
    down, up = backbone.down_pools[stage], backbone.up_pools[stage]
    pool, begin = down.pool, build.store(_linear(down.linear, build.shares))
    row = build.add(Kind.DOWN, stage, width, 0, begin, frames[stage], widths[stage + 1], pool)
    _add_stage(build, backbone, stage + 1, widths, offsets, frames, upsampled)
    begin = build.store(_linear(up.linear, build.shares))
    build.add(Kind.UP, stage, width, 0, begin, upsampled[stage], widths[stage + 1], pool)
    build.rows[row][8] = build.add(Kind.MERGE, stage, width, 0, 0, upsampled[stage], 0, pool)
    whole = save() if backbone.stage_skip else None
    for _ in blocks(backbone.up[stage]):
        if backbone.unet:
            build.add(Kind.ADD, stage, width, 0, 0, skips.pop())
    if whole is not None:
        build.add(Kind.ADD, stage, width, 0, 0, whole)


def _add_layer(build: _Builder, stage: int, width: int, layer: Any, offsets: dict[int, int]) -> None:
    layer_norm = isinstance(layer.norm, torch.nn.LayerNorm)
    norm = (layer.norm.weight, layer.norm.bias) if layer_norm else (layer.norm.gain, layer.norm.shift)
    if not hasattr(layer, "s4"):
        first, second = layer.input_linear, layer.output_linear
        begin = build.store(*norm, _linear(first), _linear(second, build.shares))
        build.add(Kind.FEED_FORWARD, stage, width, layer_norm, begin, 0, first.out_channels)
        return
    ssm, linear = layer.s4.ssm, layer.s4.output_linear
    nplr = ssm.parameterization == "nplr"
    system, c = ssm.discrete_system()
    # 2 Re of an output is a sum over both halves of the conjugate pairs; the factor is folded into v and C.
    vectors = (system.a, system.b, 2 * c[0], system.u, 2 * system.v) if nplr else (*system, 2 * c[0])
    parameters = torch.stack([part for vector in vectors for part in (vector.real, vector.imag)])  # (2 · vectors, H, N)
    kernel = ssm.kernel(SPAN).clone()  # (1, H, SPAN)
    kernel[..., 0] += ssm.D
    gates = (part.unflatten(0, (2, width)) for part in (linear.weight.flatten(1), linear.bias.unsqueeze(1)))
    weight, bias = (F.pad(part, (0, 0, 0, -width % LANES)).flatten(0, 1) for part in gates)
    output = packed_shares(_numbers(weight), _numbers(bias.squeeze(1)), build.shares)
    begin = build.store(*norm, by_vector(kernel), by_vector(parameters), output)
    kind, n = Kind.S4_NPLR if nplr else Kind.S4_DIAGONAL, ssm.n_state // 2
    build.add(kind, stage, width, layer_norm, begin, offsets[id(layer.s4)], n, 0, 0, build.span(width))


def by_vector(numbers: Tensor) -> Tensor:
    """Numbers (parts, H, N) as :func:`state_step` reads them: (vectors, N, parts, LANES), filled up with zeros."""
    parts, h, n = numbers.shape
    return F.pad(numbers, (0, 0, 0, -h % LANES)).view(parts, -1, LANES, n).permute(1, 3, 0, 2)


def _linear(layer: Any, shares: int = 1) -> np.ndarray:
    """Weight and bias of a pointwise map, for so many shares of its inputs."""
    return packed_shares(_numbers(layer.weight.flatten(1)), _numbers(layer.bias), shares)


def _numbers(tensor: Tensor) -> np.ndarray:
    return tensor.detach().float().contiguous().numpy()
