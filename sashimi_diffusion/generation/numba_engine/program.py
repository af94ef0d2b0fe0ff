"""A model flattened for the compiled step: an array of parameters, an array of map weights, a table of operations.

Activations, parameters and states are flat float32 arrays; the weights of linear maps may have fewer bytes. An
operation contains its kind and the offsets of its operands, so one compiled loop runs every topology: all stages,
layers, pools and norms.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sashimi_diffusion.generation.numba_engine.linear_maps import PackedMap, packed_shards
from sashimi_diffusion.generation.numba_engine.operations import OPERATION, Kind, Operation
from sashimi_diffusion.generation.numba_engine.vectors import LANES, SPAN, aligned_zeros, whole_vectors


class Program(NamedTuple):
    """A flattened model, as compiled code reads it.

    Args:
        operations: records of dtype ``OPERATION``, in the order of execution.
        weights: all parameters except the weights of linear maps, in the order of use, float32.
        maps: the weights of linear maps in the order of use; the dtype is their format, see ``linear_maps.WEIGHTS``.
        widths: features of each stage, int64.
        starts: first column of each stage's features in ``Memory.x``, int64.
        strides: samples per position of each stage, int64.
        num_tokens: number of quantization levels.
        embedding: index of the embedding (num_tokens, H) in the weights.
        head: index of the gain and offset of the last norm, followed by the constants of the output map, in the
            weights.
        head_map: index of the output map in the maps.
    """

    operations: np.ndarray
    weights: np.ndarray
    maps: np.ndarray
    widths: np.ndarray
    starts: np.ndarray
    strides: np.ndarray
    num_tokens: int
    embedding: int
    head: int
    head_map: int


class Layout(NamedTuple):
    """Sizes and offsets of a program's memory, in float32 numbers per stream.

    Args:
        shards: number of parts of a layer's features; a part is computed by one thread and has its own packed map.
        buffer_size: size of the skip connections, frames and outputs of up-pools.
        state_size: size of the states of all S4 layers.
        span_size: size of the spans of all S4 layers.
        s4_offsets: offset of the state of each S4 layer, in the order of the model's state.
        frame_offsets, upsampled_offsets: offsets of the frame and of the outputs of each pool in the buffer.
    """

    shards: int
    buffer_size: int
    state_size: int
    span_size: int
    s4_offsets: list[int]
    frame_offsets: list[int]
    upsampled_offsets: list[int]


@torch.no_grad()
def flatten(model: Any, shards: int, weights: str) -> tuple[Program, Layout]:
    """Return a model as a program, and the layout of its memory.

    Of two consecutive maps, the first is split by outputs and the second by inputs. A thread therefore computes its
    shard of both before it needs a result of another thread.

    Args:
        model: a ``SashimiAutoregressive`` in evaluation mode.
        shards: number of parts of a layer's features.
        weights: format of the weights of linear maps, one of ``linear_maps.WEIGHTS``.
    """
    build = _Builder(model, shards, weights)
    embedding = build.store(model.embedding.weight)
    build.add_stage(0)
    head = build.store(model.output_norm.weight, model.output_norm.bias)
    head_map = build.store_maps(build.packed(model.output))
    widths = np.array(build.widths, dtype=np.int64)
    program = Program(
        operations=np.array(build.operations, dtype=OPERATION),
        weights=build.weights(),
        maps=build.maps(),
        widths=widths,
        starts=np.concatenate([[0], np.cumsum(whole_vectors(widths))[:-1]]),
        strides=np.cumprod([1, *build.pools]),
        num_tokens=model.config.num_tokens,
        embedding=embedding,
        head=head,
        head_map=head_map,
    )
    return program, build.layout()


class _Builder:
    """Builder of a program: it collects the operations, weights and offsets of a model."""

    def __init__(self, model: Any, shards: int, weights: str) -> None:
        self.backbone, self.shards, self._format = model.backbone, shards, weights
        self.operations: list[Operation] = []
        self._weights: list[np.ndarray] = []
        self._maps: list[np.ndarray] = []
        self._weights_size = self._maps_size = self._buffer_size = self._span_size = 0
        down_pools, up_pools = self.backbone.down_pools, self.backbone.up_pools
        self.pools = [pool.pool for pool in down_pools]
        self.widths = [pool.linear.out_channels // pool.pool for pool in up_pools]
        self.widths.append(down_pools[-1].linear.out_channels if self.pools else model.config.d_model)
        layers = self.backbone.s4_layers()
        sizes = [whole_vectors(layer.ssm.d_model) * layer.ssm.n_state for layer in layers]
        self._state_size, offsets = sum(sizes), np.cumsum([0, *sizes[:-1]]).tolist()
        self._s4_offsets = {id(layer): offset for layer, offset in zip(layers, offsets, strict=True)}
        frames = [width * pool for width, pool in zip(self.widths, self.pools, strict=False)]
        self._frame_offsets = [self._buffer(size) for size in frames]
        self._upsampled_offsets = [self._buffer(size) for size in frames]

    def store(self, *parts: Tensor | np.ndarray) -> int:
        """Append parameters, each part padded to whole vectors, and return the index of the first one."""
        begin = self._weights_size
        for part in parts:
            numbers = (part if isinstance(part, np.ndarray) else _numbers(part)).ravel()
            self._weights.append(np.pad(numbers, (0, -numbers.size % LANES)))
            self._weights_size += self._weights[-1].size
        return begin

    def store_maps(self, *packed: PackedMap) -> int:
        """Append maps, their constants to the parameters, and return the index of the first weight."""
        begin = self._maps_size
        self.store(*(one.constants for one in packed))
        self._maps += [one.weights for one in packed]
        self._maps_size += sum(one.weights.size for one in packed)
        return begin

    def packed(self, layer: Any, shards: int = 1) -> PackedMap:
        """Return a pointwise map, split into shards of its inputs."""
        return packed_shards(_numbers(layer.weight.flatten(1)), _numbers(layer.bias), shards, self._format)

    def weights(self) -> np.ndarray:
        """Return all stored parameters."""
        return np.concatenate(self._weights, out=aligned_zeros(self._weights_size))

    def maps(self) -> np.ndarray:
        """Return the weights of all stored maps."""
        return np.concatenate(self._maps, out=aligned_zeros(self._maps_size, dtype=self._maps[0].dtype))

    def layout(self) -> Layout:
        """Return sizes and offsets."""
        return Layout(
            self.shards,
            self._buffer_size,
            self._state_size,
            self._span_size,
            list(self._s4_offsets.values()),
            self._frame_offsets,
            self._upsampled_offsets,
        )

    def add_stage(self, stage: int) -> None:
        """Add the operations of a stage and of all slower stages, in the order of ``SashimiBackbone.forward``."""
        backbone, width = self.backbone, self.widths[stage]
        if stage == len(self.pools):
            center = self._save(stage)
            for block in backbone.center:
                self._add_block(stage, block)
            self._add(Operation(Kind.ADD, stage, width, memory=center))
            return
        skips = []
        for block in backbone.down[stage]:
            skips.append(self._save(stage))
            self._add_block(stage, block)
        self._add_low_rate(stage)
        stage_input = self._save(stage) if backbone.stage_skip else None
        for block in backbone.up[stage]:
            self._add_block(stage, block)
            if backbone.unet:
                self._add(Operation(Kind.ADD, stage, width, memory=skips.pop()))
        if stage_input is not None:
            self._add(Operation(Kind.ADD, stage, width, memory=stage_input))

    def _add_low_rate(self, stage: int) -> None:
        """Add the down-pool of a stage, all slower stages, and the up-pool."""
        frame, upsampled = self._frame_offsets[stage], self._upsampled_offsets[stage]
        down = self._add_pool(Kind.DOWN, stage, self.backbone.down_pools[stage].linear, frame)
        self.add_stage(stage + 1)
        self._add_pool(Kind.UP, stage, self.backbone.up_pools[stage].linear, upsampled)
        width, pool = self.widths[stage], self.pools[stage]
        merge = self._add(Operation(Kind.MERGE, stage, width, memory=upsampled, pool=pool))
        self.operations[down] = self.operations[down]._replace(next_if_incomplete=merge)

    def _add_pool(self, kind: Kind, stage: int, linear: Any, memory: int) -> int:
        """Add a pool between a stage and the next, with its data at an offset of the buffer, and return its index."""
        constants, maps = self._weights_size, self.store_maps(self.packed(linear, self.shards))
        below, pool = self.widths[stage + 1], self.pools[stage]
        return self._add(
            Operation(kind, stage, self.widths[stage], 0, constants, maps, memory=memory, inner=below, pool=pool)
        )

    def _add_block(self, stage: int, block: Any) -> None:
        for layer in block:
            if hasattr(layer, "s4"):
                self._add_s4_layer(stage, layer)
            else:
                self._add_feed_forward(stage, layer)

    def _add_feed_forward(self, stage: int, layer: Any) -> None:
        first, second, (layer_norm, norm) = layer.input_linear, layer.output_linear, _norm(layer)
        weights = self.store(*norm)
        maps = self.store_maps(self.packed(first), self.packed(second, self.shards))
        width, inner = self.widths[stage], first.out_channels
        self._add(Operation(Kind.FEED_FORWARD, stage, width, layer_norm, weights, maps, inner=inner))

    def _add_s4_layer(self, stage: int, layer: Any) -> None:
        width, ssm, linear, (layer_norm, norm) = self.widths[stage], layer.s4.ssm, layer.s4.output_linear, _norm(layer)
        nplr = ssm.parameterization == "nplr"
        system, c = ssm.discrete_system()
        # An output is 2 Re of a sum over one half of the conjugate pairs; the factor 2 is part of v and C here.
        vectors = (system.a, system.b, 2 * c[0], system.u, 2 * system.v) if nplr else (*system, 2 * c[0])
        parameters = torch.stack([part for vector in vectors for part in (vector.real, vector.imag)])  # (2·vectors,H,N)
        kernel = ssm.kernel(SPAN).clone()  # (1, H, SPAN)
        kernel[..., 0] += ssm.D
        gates = (part.unflatten(0, (2, width)) for part in (linear.weight.flatten(1), linear.bias.unsqueeze(1)))
        weight, bias = (F.pad(part, (0, 0, 0, -width % LANES)).flatten(0, 1) for part in gates)
        output = packed_shards(_numbers(weight), _numbers(bias.squeeze(1)), self.shards, self._format)
        weights, maps = self.store(*norm, by_vector(kernel), by_vector(parameters)), self.store_maps(output)
        kind, memory, n = Kind.S4_NPLR if nplr else Kind.S4_DIAGONAL, self._s4_offsets[id(layer.s4)], ssm.n_state // 2
        self._add(Operation(kind, stage, width, layer_norm, weights, maps, memory, self._span(width), inner=n))

    def _save(self, stage: int) -> int:
        """Add an operation that copies the features to the buffer, and return the offset of the copy."""
        offset = self._buffer(self.widths[stage])
        self._add(Operation(Kind.SAVE, stage, self.widths[stage], memory=offset))
        return offset

    def _add(self, operation: Operation) -> int:
        """Append an operation and return its index."""
        self.operations.append(operation)
        return len(self.operations) - 1

    def _buffer(self, size: int) -> int:
        """Reserve ``size`` numbers of the buffer and return their offset."""
        offset, self._buffer_size = self._buffer_size, self._buffer_size + whole_vectors(size)
        return offset

    def _span(self, width: int) -> int:
        """Reserve the span of an S4 layer with ``width`` features and return its offset."""
        offset, self._span_size = self._span_size, self._span_size + SPAN * whole_vectors(width)
        return offset


def by_vector(numbers: Tensor) -> Tensor:
    """Return numbers (parts, H, N) in the order in which state spaces read them, (vectors, N, parts, LANES).

    Features are padded with zeros to whole vectors.
    """
    parts, h, n = numbers.shape
    return F.pad(numbers, (0, 0, 0, -h % LANES)).view(parts, -1, LANES, n).permute(1, 3, 0, 2)


def _norm(layer: Any) -> tuple[int, tuple[Tensor, Tensor]]:
    """Return ``Operation.layer_norm`` and the parameters of a layer's norm."""
    if isinstance(layer.norm, torch.nn.LayerNorm):
        return 1, (layer.norm.weight, layer.norm.bias)
    return 0, (layer.norm.gain, layer.norm.shift)


def _numbers(tensor: Tensor) -> np.ndarray:
    """Return a tensor as a contiguous float32 array."""
    return tensor.detach().float().contiguous().numpy()
