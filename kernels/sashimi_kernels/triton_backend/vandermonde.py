"""The Vandermonde matrix E[n, l] = exp(l · log_a[n]) and its transpose, applied without ever being stored.

Position l = FINE · i + j, and exp(l · log_a) = exp(FINE · i · log_a) · exp(j · log_a). A program has one tile of COARSE
values of i and all FINE values of j, computes its COARSE + FINE exponentials per state in registers, and

    evaluate   2 Re Σ_n c[n] E[n, l]        sums over n:  (c ∘ coarse) · fine, a matrix product over 2N real columns;
    project    S[n] = Σ_l x[l] E[n, l]      sums over l:  Σ_i coarse ∘ (x · fine), and with slopes
               S'[n] = Σ_l l x[l] E[n, l]   its derivative by log_a, in the same pass.

They are each other's adjoint, so each is the other's backward pass. ``project`` writes one partial sum per tile; adding
them up outside keeps the result the same from run to run, which atomics would not.

Precision: every float32 operand is taken apart into three bfloat16 numbers and six of their products are summed, which
is exact to 2^-23 and runs on every matrix unit; one TF32 product would be 1e-3 off.
"""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import knobs

from sashimi_kernels.triton_backend.arguments import FLOATS
from sashimi_kernels.triton_backend.exponentials import exponential, whole_turns
from sashimi_kernels.triton_backend.launch import Launch, launch

# The interpreter knows one precision, which is that of float32.
PRECISION = "ieee" if knobs.runtime.interpret else "bf16x6"
# The largest tiles that leave registers to spare on every target (``python -m sashimi_kernels.aot`` shows them).
EVALUATE = {"COARSE": 32, "FINE": 64, "BLOCK_N": 16, "PRECISION": PRECISION}
EVALUATE_OPTIONS = {"num_warps": 8, "num_stages": 1}
PROJECT = {"COARSE": 32, "FINE": 32, "BLOCK_N": 16, "PRECISION": PRECISION}
PROJECT_OPTIONS = {"num_warps": 4, "num_stages": 1}


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
    # Beyond the end a growing exponential might overflow, and infinity times the zeros there is NaN.
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
    """out[m, h, l] = 2 Re Σ_n coefficients[m, h, n] · exp(l · log_a[h, n]); ``reverse`` puts position l at L-1-l.

    Args:
        coefficients: float32 (M, H, N, 2). log_a: float64 (H, N, 2). out: any float dtype but float64, (M, H, L).
    """
    arguments = {"coefficients_ptr": coefficients.contiguous(), **_exponents(log_a), "out_ptr": out}
    arguments |= _layout(out, log_a, reverse)
    launch(evaluate_kernel, _grid(out, EVALUATE), arguments, EVALUATE, **EVALUATE_OPTIONS)


def project(signal: Tensor, log_a: Tensor, reverse: bool, slopes: bool) -> Tensor:
    """Σ_l signal[m, h, l] · exp(l · log_a[h, n]), and the same sums weighted by l if ``slopes``.

    Args:
        signal: any float dtype but float64, any strides, (M, H, L). ``reverse`` takes position l from L-1-l.
        log_a: float64 (H, N, 2).

    Returns:
        float32 (1 or 2, M, H, N, 2).
    """
    grid = _grid(signal, PROJECT)
    tiles, features, rows = grid
    sums = signal.new_empty((tiles, 1 + slopes, rows, features, log_a.shape[1], 2), dtype=torch.float32)
    arguments = {"signal_ptr": signal, **_exponents(log_a), "sums_ptr": sums, **_layout(signal, log_a, reverse)}
    launch(project_kernel, grid, arguments, {**PROJECT, "SLOPES": slopes}, **PROJECT_OPTIONS)
    return sums.sum(0)


def launches() -> Iterator[Launch]:
    """Every form in which the kernels of this module may be started."""
    sizes = ("n_features", "n_states", "length", "origin", "row_stride", "feature_stride", "position_stride")
    rest = {"decay_ptr": "*fp32", "turns_ptr": "*i64", **dict.fromkeys(sizes, "i32")}
    for dtype in FLOATS:
        signature = {"coefficients_ptr": "*fp32", "out_ptr": dtype, **rest}
        yield Launch(evaluate_kernel, signature, EVALUATE, **EVALUATE_OPTIONS, matrix=True)
        for slopes in (False, True):
            signature = {"signal_ptr": dtype, "sums_ptr": "*fp32", **rest}
            yield Launch(project_kernel, signature, {**PROJECT, "SLOPES": slopes}, **PROJECT_OPTIONS, matrix=True)


def _grid(signal: Tensor, constants: dict[str, int]) -> tuple[int, int, int]:
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
