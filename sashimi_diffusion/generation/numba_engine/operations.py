"""The operations of a compiled step, the rows of a program's table."""

from enum import IntEnum
from typing import NamedTuple

import numpy as np


class Kind(IntEnum):
    """Kind of an operation on the features x of its stage.

    S4_NPLR and S4_DIAGONAL are S4 layers, FEED_FORWARD is a feed-forward layer, each with its norm and residual.
    SAVE copies x to the buffer, ADD adds the buffer to x. DOWN collects x in a frame, and pools a complete frame to x
    of the next stage. UP maps x of the next stage to the samples of the next frame. MERGE adds to x the sample of the
    current frame that an earlier UP computed; at the end of the frame, it stores the output of the latest UP.
    """

    S4_NPLR = 0
    S4_DIAGONAL = 1
    FEED_FORWARD = 2
    SAVE = 3
    ADD = 4
    DOWN = 5
    UP = 6
    MERGE = 7


class Operation(NamedTuple):
    """One row of the table. Fields that a kind does not use are 0.

    Args:
        kind: kind of the operation.
        stage: index of the stage; stage 0 has the raw sample rate.
        width: features H of the stage.
        layer_norm: 1 for layer norm, 0 for SaShiMi's scalar norm.
        weights: index of the first number in ``Program.weights``.
        maps: index of the first weight of its linear maps in ``Program.maps``.
        memory: offset of the state of an S4 layer in ``Memory.states``, otherwise of the data in ``Memory.buffers``, in
            numbers per stream.
        span: offset of the span of an S4 layer in ``Memory.spans``, in numbers per stream.
        inner: complex states N of a feature, inner width of a feed-forward layer, or width of the next stage of a pool.
        pool: pooling factor.
        next_if_incomplete: for DOWN, index of the operation that follows while the frame is incomplete.
    """

    kind: Kind
    stage: int
    width: int
    layer_norm: int = 0
    weights: int = 0
    maps: int = 0
    memory: int = 0
    span: int = 0
    inner: int = 0
    pool: int = 0
    next_if_incomplete: int = 0

    @property
    def is_s4(self) -> bool:
        """Whether the operation is an S4 layer."""
        return self.kind in (Kind.S4_NPLR, Kind.S4_DIAGONAL)


OPERATION = np.dtype([(field, np.int64) for field in Operation._fields])
"""An :class:`Operation` as a record of a NumPy array; compiled code reads its fields by the same names."""
