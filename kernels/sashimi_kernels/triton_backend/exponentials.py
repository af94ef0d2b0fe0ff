"""exp(l · log_a) inside Triton kernels, for positions l at which the phase has turned thousands of times.

A turn is 2^64: the product of a position and the turns per sample, both whole numbers, wraps around by itself, so that
the remainder modulo 2π is exact at any position and no float64 is needed (most GPUs have little of it). The top 32 bits
of the remainder are the phase. Its first two choose the quarter of the circle; the rest, within π/4 of the nearest
quarter, goes into the polynomials below. They are minimax fits of sin(x)/x and cos(x), 4e-9 off.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor


def whole_turns(angle: Tensor) -> Tensor:
    """Angles (float64, radians) in units of 2^-64 turns, modulo one turn: int64. The last 11 bits are zeros."""
    turns = (angle / (2 * math.pi)).remainder(1)
    return (turns * 2**53).to(torch.int64) << 11


@triton.jit
def exponential(decay, turns, positions):
    """Real and imaginary part of exp(positions · log_a), float32; the shapes broadcast.

    Args:
        decay: Re(log_a), float32. turns: ``whole_turns(Im(log_a))``. positions: int32.
    """
    phase = ((turns * positions.to(tl.int64)) >> 32).to(tl.int32)
    quarter = (phase + 536870912) >> 30  # 2^29 is half of a quarter
    angle = (phase - (quarter << 30)).to(tl.float32) * 1.4629180792671596e-09  # 2π / 2^32
    square = angle * angle
    sine = square * (0.008332177915915728 - square * 0.00019517266794171536) - 0.16666654940189662
    sine = angle + angle * square * sine
    cosine = square * (square * 2.443841546063226e-05 - 0.0013887367212143931) + 0.04166664686050545
    cosine = 1 - 0.5 * square + square * square * cosine
    odd = (quarter & 1) != 0
    real, imag = tl.where(odd, sine, cosine), tl.where(odd, cosine, sine)
    size = tl.exp(decay * positions.to(tl.float32))
    real = tl.where(((quarter + 1) & 2) != 0, -real, real)
    imag = tl.where((quarter & 2) != 0, -imag, imag)
    return size * real, size * imag
