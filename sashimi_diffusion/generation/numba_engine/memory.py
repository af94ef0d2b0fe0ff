"""The memory that a compiled step of some streams reads and writes."""

from typing import Any, NamedTuple

import numpy as np
import torch

from sashimi_diffusion.generation.numba_engine.operations import Operation
from sashimi_diffusion.generation.numba_engine.program import Layout, Program, by_vector
from sashimi_diffusion.generation.numba_engine.vectors import LANES, STREAMS, aligned_zeros, whole_vectors


class Memory(NamedTuple):
    """Float32 arrays of a step; every row is padded to whole vectors.

    The threads of a team share ``states``, ``spans`` and ``partials``. The other arrays exist once for each thread:
    they are allocated with an axis of threads, and compiled code receives the part of its thread, without this axis.

    Args:
        states: states of all S4 layers, for each layer (vectors of features, streams, N, 2, LANES).
        spans: spans of all S4 layers, for each layer (vectors of features, streams, SPAN, LANES).
        partials: partial sums of a map, and the logits; double-buffered, (2, shards, streams, columns).
        buffers: skip connections, frames of down-pools and outputs of up-pools, (threads, streams, columns).
        x: features of all stages, (threads, streams, columns).
        normed: features after a norm, (threads, streams, columns).
        hidden: features inside of a layer, (threads, streams, columns).
        scratch: states of one vector of features in ``STREAMS`` streams, (threads, numbers).
    """

    states: np.ndarray
    spans: np.ndarray
    partials: np.ndarray
    buffers: np.ndarray
    x: np.ndarray
    normed: np.ndarray
    hidden: np.ndarray
    scratch: np.ndarray

    @classmethod
    def allocate(cls, program: Program, layout: Layout, n_streams: int) -> "Memory":
        """Return the memory of ``n_streams`` streams before the first sample."""
        threads, hidden = layout.shards, _hidden_width(program)  # each thread computes at least one shard
        widths = whole_vectors(program.widths)
        operations = [Operation(*row) for row in program.operations.tolist()]
        most_states = max((operation.inner for operation in operations if operation.is_s4), default=0)
        return cls(
            states=aligned_zeros(n_streams * layout.state_size),
            spans=aligned_zeros(n_streams * layout.span_size),
            partials=aligned_zeros(2, layout.shards, n_streams, hidden),
            buffers=aligned_zeros(threads, n_streams, whole_vectors(layout.buffer_size)),
            x=aligned_zeros(threads, n_streams, int(widths.sum())),
            normed=aligned_zeros(threads, n_streams, int(widths.max())),
            hidden=aligned_zeros(threads, n_streams, hidden),
            scratch=aligned_zeros(threads, STREAMS * 2 * LANES * most_states),
        )

    def load(self, layout: Layout, state: Any, streams: slice) -> None:
        """Copy a state of the model into the memory.

        Args:
            layout: layout of the program.
            state: a ``BackboneState``.
            streams: the clips of ``state`` that this memory belongs to.
        """
        n_streams = self.x.shape[1]
        for layer, offset in zip(state.layers, layout.s4_offsets, strict=True):
            parts = torch.view_as_real(layer[streams]).permute(0, 3, 1, 2)  # (B, 2, H, N)
            values = torch.stack([by_vector(of_stream) for of_stream in parts], dim=1)  # (vectors, B, N, 2, LANES)
            begin = offset * n_streams
            self.states[begin : begin + values.numel()] = values.flatten().numpy()
        for frames, offsets in ((state.frames, layout.frame_offsets), (state.upsampled, layout.upsampled_offsets)):
            for frame, offset in zip(frames, offsets, strict=True):
                # The other threads copy the buffers of the first one when a block begins.
                self.buffers[0, :, offset : offset + frame[0].numel()] = frame[streams].flatten(1).numpy()


def _hidden_width(program: Program) -> int:
    """Return the number of columns that suffices for every layer inside, for an up-pool and for the logits."""
    operations = program.operations
    # An S4 layer has the outputs of the state spaces, the values and the gates.
    sizes = [program.num_tokens, 3 * whole_vectors(program.widths).max()]
    sizes += [operations["inner"].max(), (operations["width"] * operations["pool"]).max()]
    return whole_vectors(int(max(sizes)))
