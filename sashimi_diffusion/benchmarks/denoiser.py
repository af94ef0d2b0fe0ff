"""Measure a denoiser of the published size: forward passes, an optimizer step, sampling.

    python -m sashimi_diffusion.benchmarks.denoiser
    python -m sashimi_diffusion.benchmarks.denoiser --d-model 128 --threads 1 --skip-reference
    python -m sashimi_diffusion.benchmarks.denoiser --profile

Times of forward passes are medians of interleaved repeats. Large matrix products in float32 and in bfloat16, timed in
the same rounds, give the peaks of this machine. The operations of a row are those of its matrix products; every row is
compared with the peak of its dtype, and rows in bfloat16 also with that of float32. Rows with ``cached kernels``
compute the convolution kernels once, as sampling does. ``bfloat16`` is the same under autocast. ``--profile`` prints
instead which operations the time of these rows is spent on, by PyTorch's profiler. WaveNet with 6.8 million parameters
is the paper's baseline. The reference backend, the optimizer step and sampling are timed once, after a warm-up.
"""

import argparse
import copy
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from sashimi_diffusion.command_line import Parser, positive, run
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.models import SashimiDenoiser, WaveNetDenoiser
from sashimi_diffusion.pipelines import SashimiPipeline
from sashimi_diffusion.schedulers import DiffWaveScheduler, create_scheduler
from sashimi_diffusion.ssm import StateSpace, frozen
from sashimi_kernels.allocation import keep_freed_memory
from sashimi_kernels.measuring import conditions, interleaved_medians, peak_memory, seconds_of

SAMPLING_STEPS = 20
CACHED, HALF = "forward, cached kernels", "forward, cached kernels, bfloat16"
PEAKS = {dtype: f"matrix product of this machine ({dtype})" for dtype in ("float32", "bfloat16")}
# The kinds of PyTorch's operations in a profile; all others are "the rest".
KINDS = {
    "matrix products": ("mm", "addmm", "bmm", "baddbmm", "linear", "mkldnn_linear"),
    "FFTs": ("_fft_r2c", "_fft_c2r", "_fft_c2c"),
    "products of spectra": ("mul", "mul_"),
    "GELU": ("gelu", "gelu_"),
    "norms": ("native_layer_norm",),
    "copies": ("copy_", "cat", "clone", "fill_", "zero_"),
    "sums and gates": ("add", "add_", "glu"),
}


class Row(NamedTuple):
    """Time of a run in seconds, and the number of floating-point operations in its matrix products."""

    seconds: float
    operations: int


def main() -> int:
    """Print the table and return the exit code."""
    return run(_measure)


def _measure() -> None:
    arguments = _arguments()
    keep_freed_memory()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    model = SashimiDenoiser(d_model=arguments.d_model, sample_size=arguments.length)
    sample = torch.randn(arguments.batch_size, 1, arguments.length)
    print(f"d_model {arguments.d_model}, batch {arguments.batch_size}, {arguments.length} samples; {conditions()}")
    if arguments.profile:
        _print_profiles(model.eval(), sample, arguments.repeats)
        return
    rows = _forward_rows(model, sample, arguments)
    peaks = {dtype: row.operations / row.seconds for dtype, name in PEAKS.items() for row in [rows.pop(name)]}
    for dtype, name in PEAKS.items():
        print(f"{name:<44}{peaks[dtype] / 1e9:>9.1f} GFLOP/s")
    for name, (seconds, operations) in rows.items():
        rate = operations / seconds
        share = f"{rate / peaks['float32']:>7.0%} of the float32 peak"
        if name == HALF:
            share = f"{rate / peaks['bfloat16']:>7.0%} of the bfloat16 peak, {share.strip()}"
        print(f"{name:<44}{seconds:>9.3f} s{operations / 1e9:>9.1f} GFLOP{share}", flush=True)
    seconds, memory = _optimizer_step(model.train(), sample)
    print(f"{'optimizer step':<44}{seconds:>9.3f} s{memory / 1e9:>9.2f} GB of tensors at the peak", flush=True)
    seconds = _sampling(model.eval(), arguments)
    print(f"{f'sampling, {SAMPLING_STEPS} steps, including the kernels':<44}{seconds:>9.3f} s")


def _arguments() -> argparse.Namespace:
    parser = Parser(
        description="Measure a denoiser of the published size: forward passes, an optimizer step, sampling."
    )
    parser.add_argument(
        "--d-model", type=positive, default=64, help="features at the raw rate; 64 and 128 are published"
    )
    parser.add_argument("--length", type=positive, default=16000, help="samples, a multiple of 16")
    parser.add_argument("--batch-size", type=positive, default=1, help="waveforms per batch")
    parser.add_argument("--repeats", type=positive, default=5, help="timed repeats of each forward pass")
    parser.add_argument("--threads", type=positive, default=None, help="CPU threads (all cores if not given)")
    parser.add_argument("--profile", action="store_true", help="print the kinds of operations of forward passes only")
    parser.add_argument("--skip-reference", action="store_true", help="skip the slow reference backend")
    arguments = parser.parse_args()
    if arguments.length % 16:
        raise UserError(f"--length is {arguments.length}, expected a multiple of 16")
    return arguments


def _forward_rows(model: nn.Module, sample: torch.Tensor, arguments: argparse.Namespace) -> dict[str, Row]:
    """Return the times of each kind of forward pass in evaluation mode, and of matrix products in the same rounds."""
    wavenet = WaveNetDenoiser(residual_channels=128, skip_channels=128, n_layers=30, dilation_cycle=10).eval()
    model.eval()
    kept = copy.deepcopy(model)
    square = torch.randn(2048, 2048)
    narrow = square.bfloat16()
    rows = {
        PEAKS["float32"]: lambda: square @ square,
        PEAKS["bfloat16"]: lambda: narrow @ narrow,
        CACHED: lambda: kept(sample, 0),
        HALF: torch.autocast("cpu", torch.bfloat16)(lambda: kept(sample, 0)),
        "forward, kernels computed each time": lambda: model(sample, 0),
        "WaveNet, 6.8 million parameters": lambda: wavenet(sample, 0),
    }
    with torch.no_grad(), frozen(kept):
        seconds = interleaved_medians(rows, arguments.repeats)
        table = {name: Row(seconds[name], _matrix_operations(row)) for name, row in rows.items()}
        if not arguments.skip_reference:
            _set_backend(kept, "reference")
            slow = seconds_of(lambda: kept(sample, 0))
            table["forward, reference backend"] = Row(slow, table[CACHED].operations)
    return table


def _print_profiles(model: nn.Module, sample: torch.Tensor, repeats: int) -> None:
    """Print the kinds of operations of forward passes with cached kernels, with their shares of the time."""
    rows = {CACHED: lambda: model(sample, 0), HALF: torch.autocast("cpu", torch.bfloat16)(lambda: model(sample, 0))}
    with torch.no_grad(), frozen(model):
        for name, row in rows.items():
            row()
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
                for _ in range(repeats):
                    row()
            times = {event.key.removeprefix("aten::"): event.self_cpu_time_total for event in profile.key_averages()}
            total = sum(times.values())
            shares = {kind: sum(times.pop(one, 0) for one in names) / total for kind, names in KINDS.items()}
            shares["the rest"] = sum(times.values()) / total
            print(f"{name}, {total / repeats / 1e6:.3f} s")
            for kind, share in sorted(shares.items(), key=lambda pair: -pair[1]):
                print(f"  {kind:<24}{share:>5.0%}")


def _set_backend(model: nn.Module, backend: str) -> None:
    for module in model.modules():
        if isinstance(module, StateSpace):
            module.backend = backend


def _optimizer_step(model: nn.Module, sample: torch.Tensor) -> tuple[float, int]:
    """Return the seconds of an optimizer step and the peak memory of its tensors in bytes."""
    optimizer = torch.optim.AdamW(model.parameters())

    def step() -> None:
        model(sample, 0).sample.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    return seconds_of(step), peak_memory(step)


def _sampling(model: SashimiDenoiser, arguments: argparse.Namespace) -> float:
    """Return the seconds of sampling a batch."""
    pipeline: Any = SashimiPipeline(model, create_scheduler("dpmsolver++-karras", DiffWaveScheduler().config))
    pipeline.set_progress_bar_config(disable=True)
    return seconds_of(lambda: pipeline(batch_size=arguments.batch_size, num_inference_steps=SAMPLING_STEPS))


def _matrix_operations(function: Callable[[], object]) -> int:
    """Return the number of floating-point operations in the matrix products of ``function``."""
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


if __name__ == "__main__":
    sys.exit(main())
