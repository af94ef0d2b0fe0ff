"""Matrices of a state space for chunks of T samples, the input of the chunked convolution.

States are real: the N complex states of a direction are n = 2N numbers, real and imaginary parts interleaved, in a row
vector S. With the samples U of a chunk, its outputs Y and the states S before and S' after the chunk,

    S' = S · advance + U · write        Y = U · Toeplitz(lags) + S · readᵀ

A reverse direction has n more numbers. They summarize the samples after the chunk and run from the last chunk to the
first with the same ``advance``.
"""

from typing import NamedTuple

from torch import Tensor

# Chunk length T. A sample takes 2T operations in the Toeplitz product, per direction 4n operations for reading and
# writing the states and 2n² / T for advancing them, and 8n / T bytes of states. With n = 64 and both directions,
# T = 128 balances the Toeplitz product with the others.
CHUNK = 128


class ChunkOperators(NamedTuple):
    """Matrices of H features for chunks of T samples, with D directions (1 or 2) and n real states per direction.

    Args:
        lags: kernel at the lags 1-T … T-1, including the skip connection, real (H, 2T-1).
        write: from the samples of a chunk to the states after it, and before it in the reverse direction, real
            (H, T, D·n).
        read: from the states before a chunk to its samples, and after it in the reverse direction, real (H, T, D·n).
        advance: factor of a row of states over a chunk, real (H, n, n). Both directions share it.
        step: factor of a row of states over one sample, real (H, n, n), for the state after a signal. None with a
            reverse direction.
    """

    lags: Tensor
    write: Tensor
    read: Tensor
    advance: Tensor
    step: Tensor | None

    @property
    def n_directions(self) -> int:
        """The number of directions D."""
        return self.write.shape[-1] // self.advance.shape[-1]

    def of(self, features: slice) -> "ChunkOperators":
        """Return the operators of some features, without a copy."""
        lags, write, read, advance = (x[features] for x in self[:4])
        return ChunkOperators(lags, write, read, advance, None if self.step is None else self.step[features])
