"""A model flattened for the kernel: a table of operations, and flat tensors of its parameters."""

import math
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from sashimi_diffusion.generation.triton_engine.operations import (
    ABSENT,
    ADD,
    ALIGNMENT,
    GATED,
    LINEAR,
    STATE_SPACE,
    Operation,
)
from sashimi_diffusion.models.blocks import scalar_norm_epsilon


class Program(NamedTuple):
    """A flattened model, on the device of the model.

    Args:
        table: the operations in the order of execution, int32 (operations, fields of :class:`Operation`).
        matrices: weights of all linear maps, float32 or bfloat16.
        numbers: all other parameters in float32, the embedding (num_tokens, d_model) first.
        logits: offset of the logits in the features of a stream.
        feature_size: features of a stream, see ``Memory.features``.
        state_size: numbers of the states of a stream, see ``Memory.states``.
        n_states: complex states N per feature, rounded up to a power of two.
        widths: features of each stage, without padding.
        state_offsets: offset of the state of each S4 layer, in the order of the model's state.
        frame_offsets, upsampled_offsets: offsets in the features of the frame of each pool, and of the samples of the
            current frame that its up-pool has computed.
        num_tokens: number of quantization levels.
        nplr: whether the state spaces are diagonal plus rank one.
        period: samples after which all frames begin again.
    """

    table: Tensor
    matrices: Tensor
    numbers: Tensor
    logits: int
    feature_size: int
    state_size: int
    n_states: int
    widths: list[int]
    state_offsets: list[int]
    frame_offsets: list[int]
    upsampled_offsets: list[int]
    num_tokens: int
    nplr: bool
    period: int


def whole(size: int) -> int:
    """Round up to a multiple of ``ALIGNMENT``."""
    return -(-size // ALIGNMENT) * ALIGNMENT


@torch.no_grad()
def flatten(model: Any, dtype: torch.dtype) -> Program:
    """Return a model as a program.

    Args:
        model: a ``SashimiAutoregressive`` in evaluation mode.
        dtype: dtype of the weights of linear maps, float32 or bfloat16.
    """
    return _Builder(model, dtype).program()


class _Builder:
    """Builder of a program: it collects the operations, parameters and offsets of a model.

    No operation writes over its input, because several threads may hold copies of the same number. The features of a
    layer's input are free for the outputs of later layers, unless a skip connection needs them.
    """

    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        self.model, self.backbone, self.dtype = model, model.backbone, dtype
        down_pools, up_pools = self.backbone.down_pools, self.backbone.up_pools
        self.pools = [pool.pool for pool in down_pools]
        self.widths = [pool.linear.out_channels // pool.pool for pool in up_pools]
        self.widths.append(down_pools[-1].linear.out_channels if self.pools else model.config.d_model)
        spaces = [layer.ssm for layer in self.backbone.s4_layers()]
        self.n_states = triton.next_power_of_2(model.config.n_state // 2)
        self.nplr = model.config.parameterization == "nplr"
        self.operations: list[Operation] = []
        self._matrices: list[Tensor] = []
        self._numbers: list[Tensor] = []
        self._matrices_size = self._numbers_size = self._feature_size = 0
        sizes = [2 * whole(space.d_model) * self.n_states for space in spaces]  # real and imaginary parts
        self._state_size = sum(sizes)
        self._states = {id(space): sum(sizes[:index]) for index, space in enumerate(spaces)}
        self._kept: set[int] = set()
        self._free: list[list[int]] = [[] for _ in self.widths]
        self._input = self._reserve(self.widths[0])
        frames = [pool * whole(width) for width, pool in zip(self.widths, self.pools, strict=False)]
        self._frames, self._upsampled = ([self._reserve(size) for size in frames] for _ in range(2))
        inner = [layer.input_linear.out_channels for layer in self._layers() if not hasattr(layer, "s4")]
        self._hidden = self._reserve(max([*self.widths, *inner]))

    def program(self) -> Program:
        """Return the flattened model."""
        model, width, num_tokens = self.model, self.widths[0], self.model.config.num_tokens
        self._number(_padded(model.embedding.weight, num_tokens, whole(width)))
        x = self._add_stage(0, self._input)
        logits = self._reserve(num_tokens)
        self._add_linear(model.output, x, logits, norm=model.output_norm)
        return Program(
            table=torch.tensor(self.operations, dtype=torch.int32, device=model.embedding.weight.device),
            matrices=torch.cat(self._matrices),
            numbers=torch.cat(self._numbers),
            logits=logits,
            feature_size=self._feature_size,
            state_size=self._state_size,
            n_states=self.n_states,
            widths=self.widths,
            state_offsets=list(self._states.values()),
            frame_offsets=self._frames,
            upsampled_offsets=self._upsampled,
            num_tokens=num_tokens,
            nplr=self.nplr,
            period=math.prod(self.pools),
        )

    def _layers(self) -> list[Any]:
        """Return the residual layers of all stages."""
        stages = [*self.backbone.down, self.backbone.center, *self.backbone.up]
        return [layer for blocks in stages for block in blocks for layer in block]

    def _add_stage(self, stage: int, x: int) -> int:
        """Add the operations of a stage and of all slower stages, in the order of ``SashimiBackbone.forward``.

        Args:
            stage: index of the stage.
            x: offset of its input.

        Returns:
            offset of its output.
        """
        backbone = self.backbone
        if stage == len(self.pools):
            center = self._keep(x)
            for block in backbone.center:
                x = self._add_block(stage, block, x)
            return self._add_skip(stage, x, center)
        skips = []
        for block in backbone.down[stage]:
            skips.append(self._keep(x))
            x = self._add_block(stage, block, x)
        stage_input = self._add_slower_stages(stage, x)
        x = self._keep(stage_input) if backbone.stage_skip else stage_input
        for block in backbone.up[stage]:
            x = self._add_block(stage, block, x)
            if backbone.unet:
                x = self._add_skip(stage, x, skips.pop())
        return self._add_skip(stage, x, stage_input) if backbone.stage_skip else x

    def _add_slower_stages(self, stage: int, x: int) -> int:
        """Add the down-pool of a stage, all slower stages, and the up-pool; return the offset of the sum."""
        frame, upsampled, pool = self._frames[stage], self._upsampled[stage], self.pools[stage]
        width, following = (whole(width) for width in self.widths[stage : stage + 2])
        down, up = self.backbone.down_pools[stage].linear, self.backbone.up_pools[stage].linear
        target, below, stride = self._target(stage, x), self._reserve(following), math.prod(self.pools[:stage])
        # The current sample of the up-pool is added before the pools run, because they overwrite it.
        collect = Operation(ADD.value, x, target, width, skip=upsampled, memory=frame, pool=pool, stride=stride)
        position = self._add(collect)
        weight = down.weight.flatten(1).unflatten(1, (-1, pool)).transpose(1, 2)  # (following, pool, width)
        weights, bias = (
            self._matrix(_padded(weight, following, pool, width)),
            self._number(_padded(down.bias, following)),
        )
        self._add(Operation(LINEAR.value, frame, below, pool * width, following, weights=weights, constants=bias))
        below = self._add_stage(stage + 1, below)
        weight, bias = (part.unflatten(0, (-1, pool)).transpose(0, 1) for part in (up.weight.flatten(1), up.bias))
        weights, constants = (
            self._matrix(_padded(weight, pool, width, following)),
            self._number(_padded(bias, pool, width)),
        )
        linear = Operation(
            LINEAR.value, below, upsampled, following, pool * width, weights=weights, constants=constants
        )
        self._add(linear)
        self.operations[position] = collect._replace(following=len(self.operations))
        return target

    def _add_block(self, stage: int, block: Any, x: int) -> int:
        """Add the layers of a block and return the offset of its output."""
        for layer in block:
            target = self._target(stage, x)
            if hasattr(layer, "s4"):
                self._add_state_space(layer, x)
                weight, bias = (
                    part.unflatten(0, (2, -1))
                    for part in (layer.s4.output_linear.weight.flatten(1), layer.s4.output_linear.bias)
                )
                size = whole(weight.shape[1])
                weights, constants = self._matrix(_padded(weight, 2, size, size)), self._number(_padded(bias, 2, size))
                gated = Operation(GATED.value, self._hidden, target, size, size, weights=weights, constants=constants)
                self._add(gated._replace(residual=x))
            else:
                self._add_linear(layer.input_linear, x, self._hidden, norm=layer.norm, gelu=1)
                self._add_linear(layer.output_linear, self._hidden, target, residual=x)
            x = target
        return x

    def _add_state_space(self, layer: Any, x: int) -> None:
        """Add the norm and the state space of an S4 layer; the output is in ``hidden``."""
        ssm = layer.s4.ssm
        width, size = ssm.d_model, whole(ssm.d_model)
        system, c = ssm.discrete_system()
        # An output is 2 Re of a sum over one half of the conjugate pairs; the factor 2 is part of C and v here.
        vectors = (system.a, system.b, 2 * c[0], system.u, 2 * system.v) if self.nplr else (*system, 2 * c[0])
        parts = torch.stack([part for vector in vectors for part in (vector.real, vector.imag)])  # (2 · vectors, H, N)
        constants = self._number(_padded(ssm.D[0], size))
        self._number(_padded(parts, len(parts), size, self.n_states))
        norm = self._norm(layer.norm, width)
        self._add(
            Operation(
                STATE_SPACE.value,
                x,
                self._hidden,
                size,
                width=width,
                norm=norm,
                constants=constants,
                memory=self._states[id(ssm)],
            )
        )

    def _add_linear(self, linear: Any, x: int, target: int, norm: Any = None, **options: int) -> None:
        """Add a linear map, after a norm if one is given."""
        width, (n_out, n_in) = linear.in_channels, map(whole, (linear.out_channels, linear.in_channels))
        weights = self._matrix(_padded(linear.weight.flatten(1), n_out, n_in))
        constants = self._number(_padded(linear.bias, n_out))
        normed = ABSENT.value if norm is None else self._norm(norm, width)
        self._add(Operation(LINEAR.value, x, target, n_in, n_out, width, normed, weights, constants, **options))

    def _norm(self, norm: Any, width: int) -> int:
        """Store a norm, weight · (x - mean + shift) / √(variance + epsilon) + offset, and return its index.

        The numbers are epsilon and shift, padded to ``ALIGNMENT``, the weights (width) and the offsets (width).
        """
        if isinstance(norm, torch.nn.LayerNorm):
            epsilon, shift, weight, offset = norm.eps, norm.weight.new_zeros(1), norm.weight, norm.bias
        else:
            epsilon, shift = scalar_norm_epsilon(torch.float32), norm.shift
            weight, offset = norm.gain.expand(width), norm.gain.new_zeros(width)
        shift = shift.float()
        index = self._number(_padded(torch.cat([shift.new_tensor([epsilon]), shift]), ALIGNMENT))
        self._number(_padded(torch.stack([weight, offset]), 2, whole(width)))
        return index

    def _add_skip(self, stage: int, x: int, skip: int) -> int:
        """Add the features at ``skip`` to those at ``x`` and return the offset of the sum."""
        last = self.operations[-1] if self.operations else None
        if last is not None and last.target == x and last.residual != ABSENT.value and last.skip == ABSENT.value:
            self.operations[-1] = last._replace(skip=skip)
            return x
        target = self._target(stage, x)
        self._add(Operation(ADD.value, x, target, whole(self.widths[stage]), skip=skip))
        return target

    def _target(self, stage: int, x: int) -> int:
        """Return an offset for the output of a layer with the input ``x``, which is free after this layer."""
        free = self._free[stage]
        target = free.pop() if free else self._reserve(self.widths[stage])
        if x not in self._kept:
            free.append(x)
        return target

    def _keep(self, x: int) -> int:
        self._kept.add(x)
        return x

    def _reserve(self, size: int) -> int:
        """Reserve features of a stream and return their offset."""
        offset, self._feature_size = self._feature_size, self._feature_size + whole(size)
        return offset

    def _matrix(self, weight: Tensor) -> int:
        """Store the weights of a linear map and return their index."""
        self._matrices.append(weight.flatten().to(self.dtype))
        index, self._matrices_size = self._matrices_size, self._matrices_size + weight.numel()
        return index

    def _number(self, values: Tensor) -> int:
        """Store other parameters and return their index."""
        self._numbers.append(values.flatten().float())
        index, self._numbers_size = self._numbers_size, self._numbers_size + values.numel()
        return index

    def _add(self, operation: Operation) -> int:
        """Append an operation and return its index."""
        self.operations.append(operation)
        return len(self.operations) - 1


def _padded(values: Tensor, *shape: int) -> Tensor:
    """Return ``values`` with zeros after them along every axis."""
    padded = values.new_zeros(shape)
    padded[tuple(slice(size) for size in values.shape)] = values
    return padded
