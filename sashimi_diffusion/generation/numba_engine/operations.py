"""The operations of a compiled step: what the rows of a program's table hold."""

from enum import IntEnum
from typing import NamedTuple

import numpy as np


class Kind(IntEnum):
    """What an operation does to the features x of its stage.

    S4_NPLR and S4_DIAGONAL are S4 layers, FEED_FORWARD is a feed-forward layer, each with its norm and residual.
    SAVE copies x to the buffer, ADD adds the buffer to x. DOWN collects x in a frame and pools the complete frame to
    the next stage. UP maps the next stage to the samples of the next frame. MERGE adds the sample of the current frame
    to x and, at the end of the frame, stores the output of UP.
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
    """One row of the table.

    Args:
        kind: what to do, a :class:`Kind`.
        stage: index of the stage; stage 0 has the raw sample rate.
        width: features H of the stage.
        layer_norm: 1 for layer norm, 0 for SaShiMi's scalar norm.
        weights: index of the first weight in ``Program.weights``.
        memory: offset of the S4 layer's state, or of the data in the buffer, in numbers per stream.
        span: offset of the S4 layer's span, in numbers per stream.
        inner: complex states N of a feature, inner width of a feed-forward layer, or width of the next stage of a pool.
        pool: pooling factor.
        next_if_incomplete: index of the operation that follows while a frame is incomplete.
    """

    kind: Kind
    stage: int
    width: int
    layer_norm: int = 0
    weights: int = 0
    memory: int = 0
    span: int = 0
    inner: int = 0
    pool: int = 0
    next_if_incomplete: int = 0

    @property
    def is_s4(self) -> bool:
        """Whether it is an S4 layer."""
        return self.kind in (Kind.S4_NPLR, Kind.S4_DIAGONAL)


OPERATION = np.dtype([(field, np.int64) for field in Operation._fields])
"""An :class:`Operation` as a record of a NumPy array; compiled code reads its fields by the same names."""
