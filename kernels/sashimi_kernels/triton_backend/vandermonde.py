"""Products with the Vandermonde matrix E[n, l] = exp(l · log_a[n]) and its transpose, without storing the matrix.

For the position l = FINE · i + j, exp(l · log_a) = exp(FINE · i · log_a) · exp(j · log_a). A program handles COARSE
values of i and all FINE values of j. It computes COARSE + FINE exponentials per state in registers, and

    evaluate   2 Re Σ_n c[n] E[n, l]        sums over n:  (c ∘ coarse) · fine, a matrix product over 2N real columns;
    project    S[n] = Σ_l x[l] E[n, l]      sums over l:  Σ_i coarse ∘ (x · fine), and with ``slopes``
               S'[n] = Σ_l l x[l] E[n, l]   the derivative of S with respect to log_a, in the same pass.

Each is the adjoint and therefore the backward pass of the other. ``project`` writes one partial sum per tile. PyTorch
adds them, so the result is reproducible, unlike with atomics.

Exponentials: l · Im(log_a) may be thousands of turns (2π). Angles are integers in units of 2^-64 turns. The integer
product of a position and the angle per sample overflows, which drops whole turns: the remainder modulo 2π is exact at
any position without float64, which is slow on most GPUs. The top 32 bits of the remainder are the phase. It is the sum
of a multiple of π/2 and an angle from -π/4 to π/4. There the minimax polynomials of sin(x)/x and cos(x) have an error
of 4e-9.

Precision: every float32 operand is split into three bfloat16 numbers and six of their products are summed. The relative
error is 2^-23 and every matrix unit supports it. One TF32 product would have an error of 1e-3.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import knobs

from sashimi_kernels.hardware import HARDWARE, RDNA
from sashimi_kernels.triton_backend.arguments import FLOATS, is_rdna
from sashimi_kernels.triton_backend.launch import Launch, launch

# The interpreter has one precision, that of float32.
PRECISION = "ieee" if knobs.runtime.interpret else "bf16x6"
# The largest tiles that do not spill registers (``python -m sashimi_kernels.aot`` prints the usage).
EVALUATE: dict[str, Any] = {"COARSE": 32, "FINE": 64, "BLOCK_N": 16, "PRECISION": PRECISION}
EVALUATE_OPTIONS: dict[str, Any] = {"num_warps": 8, "num_stages": 1}
PROJECT: dict[str, Any] = {"COARSE": 32, "FINE": 32, "BLOCK_N": 16, "PRECISION": PRECISION}
# Matrix instructions of RDNA take each operand in both halves of a wave, which doubles its registers.
PROJECT_RDNA: dict[str, Any] = {**PROJECT, "COARSE": 64, "FINE": 16}
PROJECT_OPTIONS: dict[str, Any] = {"num_warps": 4, "num_stages": 1}


def whole_turns(angle: Tensor) -> Tensor:
    """Convert angles in radians, float64, to units of 2^-64 turns modulo one turn, int64. The last 11 bits are 0."""
    turns = (angle / (2 * math.pi)).remainder(1)
    return (turns * 2**53).to(torch.int64) << 11


@triton.jit
def exponential(decay, turns, positions):
    """Return the real and imaginary part of exp(positions · log_a), float32. Shapes broadcast.

    Args:
        decay: Re(log_a), float32.
        turns: ``whole_turns(Im(log_a))``.
        positions: int32.
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


@triton.jit
def evaluate_kernel(
    coefficients_ptr,  # (M, H, N, 2)
    decay_ptr,  # (H, N)
    turns_ptr,  # (H, N)
    out_ptr,  # (M, H, L), position l of a row at origin + l · position_stride
    n_features,
    n_states,
    length,
    origin,
    row_stride,
    feature_stride,
    position_stride,
    COARSE: tl.constexpr,
    FINE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):
    pid_tile, pid_h, pid_m = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    coarse = (pid_tile * COARSE + tl.arange(0, COARSE)) * FINE
    fine = tl.arange(0, FINE)
    row = pid_m.to(tl.int64) * n_features + pid_h
    samples = tl.zeros((COARSE, FINE), dtype=tl.float32)
    for start in range(0, n_states, BLOCK_N):
        n_offsets = start + tl.arange(0, BLOCK_N)
        n_mask = n_offsets < n_states
        decay = tl.load(decay_ptr + pid_h * n_states + n_offsets, mask=n_mask, other=0.0)
        turns = tl.load(turns_ptr + pid_h * n_states + n_offsets, mask=n_mask, other=0)
        c_offsets = (row * n_states + n_offsets) * 2
        c_real = tl.load(coefficients_ptr + c_offsets, mask=n_mask, other=0.0)[None, :]
        c_imag = tl.load(coefficients_ptr + c_offsets + 1, mask=n_mask, other=0.0)[None, :]
        coarse_real, coarse_imag = exponential(decay[None, :], turns[None, :], coarse[:, None])
        fine_real, fine_imag = exponential(decay[:, None], turns[:, None], fine[None, :])
        left = c_real * coarse_real - c_imag * coarse_imag
        samples = tl.dot(left, fine_real, samples, input_precision=PRECISION)
        left = -c_real * coarse_imag - c_imag * coarse_real
        samples = tl.dot(left, fine_imag, samples, input_precision=PRECISION)
    l = coarse[:, None] + fine[None, :]
    out_ptr += origin + pid_m.to(tl.int64) * row_stride + pid_h.to(tl.int64) * feature_stride
    tl.store(out_ptr + l.to(tl.int64) * position_stride, 2 * samples, mask=l < length)


@triton.jit
def project_kernel(
    signal_ptr,  # (M, H, L), position l of a row at origin + l · position_stride
    decay_ptr,  # (H, N)
    turns_ptr,  # (H, N)
    sums_ptr,  # (tiles, 1 or 2, M, H, N, 2)
    n_features,
    n_states,
    length,
    origin,
    row_stride,
    feature_stride,
    position_stride,
    SLOPES: tl.constexpr,
    COARSE: tl.constexpr,
    FINE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):
    pid_tile, pid_h, pid_m = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    coarse = (pid_tile * COARSE + tl.arange(0, COARSE)) * FINE
    fine = tl.arange(0, FINE)
    l = coarse[:, None] + fine[None, :]
    signal_ptr += origin + pid_m.to(tl.int64) * row_stride + pid_h.to(tl.int64) * feature_stride
    signal = tl.load(signal_ptr + l.to(tl.int64) * position_stride, mask=l < length, other=0.0).to(tl.float32)
    weighted, coarse_weight = signal * fine.to(tl.float32)[None, :], coarse.to(tl.float32)[:, None]
    # After the last sample a growing exponential may overflow, and infinity times the zeros there is NaN.
    coarse = tl.minimum(coarse, length)
    slope_offset = tl.num_programs(2).to(tl.int64) * n_features * n_states * 2
    row = pid_m.to(tl.int64) * n_features + pid_h
    tile_ptr = sums_ptr + pid_tile * slope_offset * (2 if SLOPES else 1)
    for start in range(0, n_states, BLOCK_N):
        n_offsets = start + tl.arange(0, BLOCK_N)
        n_mask = n_offsets < n_states
        decay = tl.load(decay_ptr + pid_h * n_states + n_offsets, mask=n_mask, other=0.0)[None, :]
        turns = tl.load(turns_ptr + pid_h * n_states + n_offsets, mask=n_mask, other=0)[None, :]
        coarse_real, coarse_imag = exponential(decay, turns, coarse[:, None])
        fine_real, fine_imag = exponential(decay, turns, fine[:, None])
        inner_real = tl.dot(signal, fine_real, input_precision=PRECISION)
        inner_imag = tl.dot(signal, fine_imag, input_precision=PRECISION)
        real = inner_real * coarse_real - inner_imag * coarse_imag
        imag = inner_real * coarse_imag + inner_imag * coarse_real
        sum_ptrs = tile_ptr + (row * n_states + n_offsets) * 2
        tl.store(sum_ptrs, tl.sum(real, 0), mask=n_mask)
        tl.store(sum_ptrs + 1, tl.sum(imag, 0), mask=n_mask)
        if SLOPES:
            inner_real = tl.dot(weighted, fine_real, input_precision=PRECISION)
            inner_imag = tl.dot(weighted, fine_imag, input_precision=PRECISION)
            real = coarse_weight * real + inner_real * coarse_real - inner_imag * coarse_imag
            imag = coarse_weight * imag + inner_real * coarse_imag + inner_imag * coarse_real
            tl.store(sum_ptrs + slope_offset, tl.sum(real, 0), mask=n_mask)
            tl.store(sum_ptrs + slope_offset + 1, tl.sum(imag, 0), mask=n_mask)


def evaluate(coefficients: Tensor, log_a: Tensor, out: Tensor, reverse: bool) -> None:
    """Compute out[m, h, l] = 2 Re Σ_n coefficients[m, h, n] · exp(l · log_a[h, n]).

    Args:
        coefficients: float32 (M, H, N, 2).
        log_a: float64 (H, N, 2).
        out: written; float32, float16 or bfloat16 (M, H, L).
        reverse: store position l at L-1-l.
    """
    tensors = {"coefficients_ptr": coefficients.contiguous(), **_exponents(log_a), "out_ptr": out}
    arguments = {**tensors, **_layout(out, log_a, reverse)}
    launch(evaluate_kernel, _grid(out, EVALUATE), arguments, EVALUATE, **EVALUATE_OPTIONS)


def project(signal: Tensor, log_a: Tensor, reverse: bool, slopes: bool) -> Tensor:
    """Return Σ_l signal[m, h, l] · exp(l · log_a[h, n]).

    Args:
        signal: float32, float16 or bfloat16 (M, H, L) with any strides.
        log_a: float64 (H, N, 2).
        reverse: load position l from L-1-l.
        slopes: also return the sums weighted by l.

    Returns:
        float32 (1 or 2, M, H, N, 2).
    """
    constants = PROJECT_RDNA if is_rdna(signal.device) else PROJECT
    grid = _grid(signal, constants)
    tiles, features, rows = grid
    sums = signal.new_empty((tiles, 1 + slopes, rows, features, log_a.shape[1], 2), dtype=torch.float32)
    arguments = {"signal_ptr": signal, **_exponents(log_a), "sums_ptr": sums, **_layout(signal, log_a, reverse)}
    launch(project_kernel, grid, arguments, {**constants, "SLOPES": slopes}, **PROJECT_OPTIONS)
    return sums.sum(0)


def launches() -> Iterator[Launch]:
    """Yield every form in which the kernels of this module are launched."""
    sizes = ("n_features", "n_states", "length", "origin", "row_stride", "feature_stride", "position_stride")
    rest = {"decay_ptr": "*fp32", "turns_ptr": "*i64", **dict.fromkeys(sizes, "i32")}
    for dtype in FLOATS:
        signature = {"coefficients_ptr": "*fp32", "out_ptr": dtype, **rest}
        yield Launch(evaluate_kernel, signature, EVALUATE, **EVALUATE_OPTIONS, matrix=True)
        signature = {"signal_ptr": dtype, "sums_ptr": "*fp32", **rest}
        for slopes in (False, True):
            for tile, targets in ((PROJECT, tuple(HARDWARE.keys() - set(RDNA))), (PROJECT_RDNA, RDNA)):
                constants = {**tile, "SLOPES": slopes}
                yield Launch(project_kernel, signature, constants, **PROJECT_OPTIONS, matrix=True, targets=targets)


def _grid(signal: Tensor, constants: dict[str, Any]) -> tuple[int, int, int]:
    rows, features, length = signal.shape
    return triton.cdiv(length, constants["COARSE"] * constants["FINE"]), features, rows


def _exponents(log_a: Tensor) -> dict[str, Tensor]:
    decay, angle = log_a.unbind(-1)
    return {"decay_ptr": decay.float().contiguous(), "turns_ptr": whole_turns(angle)}


def _layout(signal: Tensor, log_a: Tensor, reverse: bool) -> dict[str, int]:
    _, features, length = signal.shape
    row_stride, feature_stride, position_stride = signal.stride()
    return {
        **{"n_features": features, "n_states": log_a.shape[1], "length": length},
        **{"row_stride": row_stride, "feature_stride": feature_stride},
        "origin": (length - 1) * position_stride if reverse else 0,
        "position_stride": -position_stride if reverse else position_stride,
    }
