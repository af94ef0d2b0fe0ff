"""The operations of a recurrence step, the rows of a program's table; Python writes them and a kernel reads them."""

from typing import NamedTuple

import triton.language as tl

ALIGNMENT = 16
"""Offsets and numbers of features are multiples of this, so that the kernel reads several numbers at once."""

ABSENT = tl.constexpr(-ALIGNMENT)
"""The offset of a norm, a residual, a skip connection or a frame that an operation does not have."""

# Kinds. STATE_SPACE: target = GELU(state space(norm(source))).
# LINEAR: target = W norm(source) + b, or GELU of it, + residual + skip. GATED: the same with GLU.
# ADD: target = source + skip; it may also collect a frame, see Operation.
STATE_SPACE, LINEAR, GATED, ADD = (tl.constexpr(kind) for kind in range(4))


class Operation(NamedTuple):
    """One row of the table.

    Offsets of features are numbers per stream in ``Memory.features``. Norm, residual and skip may be ``ABSENT``. The
    fields that a kind does not use are 0.

    Args:
        kind: STATE_SPACE, LINEAR, GATED or ADD.
        source, target: offsets of the input and of the output, which differ.
        n_in, n_out: numbers of inputs and outputs, rounded up to multiples of ``ALIGNMENT``.
        width: number of inputs that are not padding, which a norm needs.
        norm: index of the norm of the source in ``Program.numbers``.
        weights: index of the matrix (n_out, n_in) in ``Program.matrices``; GATED has the gates (n_out, n_in) after it.
        constants: index in ``Program.numbers`` of the bias, for GATED of both biases, for STATE_SPACE of D and the
            system.
        gelu: 1 if LINEAR applies GELU.
        residual, skip: offsets of features that are added to the output.
        memory: for STATE_SPACE, offset of the state in ``Memory.states``, in numbers per stream. For ADD, offset of the
            frame that receives the source, or ``ABSENT``.
        pool, stride: for ADD, samples of a frame, and samples at the raw rate per sample of the stage. The source is
            stored in the current slot of the frame, and the current slot of ``skip`` is added.
        following: for ADD with a frame, index of the operation that follows while the frame is incomplete.
    """

    kind: int
    source: int
    target: int
    n_in: int
    n_out: int = 0
    width: int = 0
    norm: int = ABSENT.value
    weights: int = 0
    constants: int = 0
    gelu: int = 0
    residual: int = ABSENT.value
    skip: int = ABSENT.value
    memory: int = ABSENT.value
    pool: int = 1
    stride: int = 1
    following: int = 0


_columns = {name: tl.constexpr(index) for index, name in enumerate(Operation._fields)}
FIELDS = tl.constexpr(len(_columns))
SOURCE, TARGET, N_IN, N_OUT = (_columns[name] for name in ("source", "target", "n_in", "n_out"))
WIDTH, NORM, WEIGHTS, CONSTANTS = (_columns[name] for name in ("width", "norm", "weights", "constants"))
USES_GELU, RESIDUAL, SKIP = (_columns[name] for name in ("gelu", "residual", "skip"))
MEMORY, POOL, STRIDE, FOLLOWING = (_columns[name] for name in ("memory", "pool", "stride", "following"))
