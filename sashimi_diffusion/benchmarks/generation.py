"""Samples per second of autoregressive generation, by engine, in one run.

    python -m sashimi_diffusion.benchmarks.generation
    python -m sashimi_diffusion.benchmarks.generation --no-unet --streams 1 8 32

The network has the published sizes of "sashimi-sc09-unet" (or, with ``--no-unet``, "sashimi-sc09") and random weights,
which cost the same. ``eager`` is the recurrence in PyTorch, one operation after the other; ``dense`` is the same with
the dense transition matrices of the official code. A prefix is absorbed in one pass; stepping it is timed on a few
hundred samples and scaled up.
"""

import argparse
import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from sashimi_diffusion.benchmarks.dense_step import step_densely
from sashimi_diffusion.generation.engines import EagerEngine
from sashimi_diffusion.generation.sampling import Sampling
from sashimi_diffusion.models import SashimiAutoregressive
from sashimi_kernels.allocation import keep_freed_memory
from sashimi_kernels.measuring import conditions, gemm_peak, interleaved_medians

ROUNDS = 3
_COPIED_BYTES = 2**28


def main() -> None:
    """Print the table."""
    options = _options()
    keep_freed_memory()
    if options.threads:
        torch.set_num_threads(options.threads)
    model = SashimiAutoregressive(
        d_model=options.d_model, n_layers=options.n_layers, unet=options.unet, n_ssm=None if options.unet else 1
    ).eval()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{'U-net' if options.unet else 'no U-net'}, {parameters:,} parameters; {conditions()}")
    print(f"matrix product {gemm_peak():.0f} GFLOP/s, memory read at {_read_bandwidth() / 1e9:.1f} GB/s by one thread")
    dense = copy.deepcopy(model)
    step_densely(dense)
    for streams in options.streams:
        _print_streams(model, dense, streams, options.samples)
    _print_prefix(model, options.prefix, options.samples)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--unet", action=argparse.BooleanOptionalAction, default=True, help="the U-net configuration")
    parser.add_argument("--d-model", type=int, default=64, help="features at the raw rate")
    parser.add_argument("--n-layers", type=int, default=8, help="blocks per stage")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 32], help="clips made at once")
    parser.add_argument("--samples", type=int, default=64, help="eager steps timed; the compiled engine makes more")
    parser.add_argument("--prefix", type=int, default=8000, help="samples of a prefix")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads (all cores if not given)")
    return parser.parse_args()


def _print_streams(model: Any, dense: Any, streams: int, samples: int) -> None:
    from sashimi_diffusion.generation.numba_engine import NumbaEngine

    compiled = NumbaEngine(model, streams)
    counts = {"dense": samples, "eager": samples, "numba": 64 * samples}
    engines = {"dense": EagerEngine(dense, streams), "eager": EagerEngine(model, streams), "numba": compiled}
    runs = {name: _run(engine, streams, counts[name]) for name, engine in engines.items()}
    runs["numba"]()  # compiles, or reads what was compiled
    seconds = interleaved_medians(runs, ROUNDS)
    rates = {name: streams * counts[name] / seconds[name] for name in runs}
    moved = _bytes_per_step(compiled) * rates["numba"] / streams
    print(
        f"{streams:>4} streams: samples/s {rates['dense']:.0f} dense, {rates['eager']:.0f} eager, "
        f"{rates['numba']:.0f} numba: {rates['numba'] / rates['dense']:.0f} and {rates['numba'] / rates['eager']:.0f} "
        f"times; {moved / 1e9:.1f} GB/s of weights and states"
    )


def _print_prefix(model: Any, length: int, samples: int) -> None:
    prefix = torch.randint(model.config.num_tokens, (1, length))
    seconds = interleaved_medians(
        {
            "pass": torch.no_grad()(lambda: model.prefill(prefix)),
            "steps": _run(EagerEngine(model, 1), 1, samples),
        },
        ROUNDS,
    )
    stepped = seconds["steps"] / samples * length
    print(
        f"prefix of {length} samples: {seconds['pass']:.2f} s in one pass, {stepped:.0f} s in eager steps, "
        f"{stepped / seconds['pass']:.0f} times"
    )


def _run(engine: Any, streams: int, samples: int) -> Callable[[], object]:
    tokens = torch.full((streams,), engine.model.start_token)
    uniforms = torch.rand(streams, samples, dtype=torch.float64)
    return lambda: engine.run(tokens, uniforms, Sampling())


def _bytes_per_step(engine: Any) -> float:
    """Memory that a step reads and writes, on average: weights once for all streams of a thread, the rest for each.

    Pooled stages run seldom. State spaces read their parameters, and read and write their states, once per span; in
    between they read a half of their kernel and of the span's inputs, write one of these, and read what is ready of y.
    """
    from sashimi_diffusion.generation.numba_engine.program import Kind
    from sashimi_diffusion.generation.numba_engine.spans import SPAN, parameters_size
    from sashimi_diffusion.generation.numba_engine.vectors import whole_vectors

    program, strides = engine.program, np.cumprod([1, *engine.program.pools])
    rows = [row for row in program.operations.tolist() if row[4]]
    weights, streams = float(program.weights.size - program.head), 0.0
    for row, end in zip(rows, [*(row[4] for row in rows[1:]), program.head], strict=True):
        size, stride = end - row[4], strides[row[1]]
        if row[0] in (Kind.S4_NPLR, Kind.S4_DIAGONAL):
            features, n = whole_vectors(row[2]), row[6]
            parameters = parameters_size(row[0] == Kind.S4_NPLR, row[2], n)
            size -= parameters * (1 - 1 / SPAN) + features * SPAN / 2
            streams += features * (4 * n / SPAN + SPAN / 2 + 2) / stride
        weights += size / stride
    parts = 1 if engine.batch_size == 1 else engine.threads
    return 4 * (parts * weights + engine.batch_size * streams)


def _read_bandwidth() -> float:
    """Bytes per second that one thread reads from memory beyond the caches."""
    numbers = np.ones(_COPIED_BYTES // 4, dtype=np.float32)
    seconds = interleaved_medians({"sum": lambda: numbers.sum()}, ROUNDS)["sum"]
    return _COPIED_BYTES / seconds


if __name__ == "__main__":
    main()
