"""Measure samples per second of autoregressive generation for each engine.

    python -m sashimi_diffusion.benchmarks.generation
    python -m sashimi_diffusion.benchmarks.generation --no-unet --streams 1 8 32
    python -m sashimi_diffusion.benchmarks.generation --streams 1 --samples 250 --rounds 15 --skip-eager

The network has the sizes of the published "sashimi-sc09-unet" (with ``--no-unet``, of "sashimi-sc09"). Its weights are
random, which does not change the time. ``eager`` is the recurrence in PyTorch, one operation after the other. ``dense``
is the same with the dense transition matrices of the official code. The other rows are the compiled engine with the
weights of the linear maps in each format. Rounds run all engines in turn, so that other load on the computer affects
all of them equally. ``cores`` is the CPU time of the best round divided by its time: below the number of threads, other
programs had the rest. The last line compares one pass over a prefix with eager steps; the steps are timed on
``--samples`` samples and scaled to the length of the prefix.
"""

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from sashimi_diffusion.command_line import Parser, positive, run
from sashimi_diffusion.generation import WEIGHTS
from sashimi_diffusion.generation.engines import EagerEngine
from sashimi_diffusion.generation.sampling import Sampling
from sashimi_diffusion.models import SashimiAutoregressive
from sashimi_diffusion.ssm.state_space import StateSpace
from sashimi_kernels.allocation import keep_freed_memory
from sashimi_kernels.measuring import conditions, gemm_peak, interleaved_medians

ROUNDS = 3
COMPILED_SAMPLES = 64  # times as many samples are timed with the compiled engine
_READ_BYTES = 2**28  # 256 MiB, more than any cache


def main() -> int:
    """Print the table and return the exit code."""
    return run(_measure)


def _measure() -> None:
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
    use_dense_steps(dense)
    for streams in options.streams:
        _print_streams(model, dense, streams, options)
    if not options.skip_eager:
        _print_prefix(model, options.prefix, options.samples)


def use_dense_steps(model: nn.Module) -> None:
    """Replace the recurrence step of all "nplr" state spaces in ``model`` by that of the official code, its default.

    The official code computes Ā as a matrix of 2 N x 2 N complex numbers for each feature, and multiplies the whole
    state with it, including the conjugate half. This takes O(N²) operations; :meth:`StateSpace.step` takes O(N).
    Afterwards the model has no prefill, and later changes of its parameters do not affect its steps.
    """
    for module in model.modules():
        if isinstance(module, StateSpace) and module.parameterization == "nplr":
            module.step = DenseStep(module)  # type: ignore[method-assign]  # of this instance


class DenseStep:
    """A replacement for :meth:`StateSpace.step` with a dense transition matrix; its states are complex (B, H, 2 N)."""

    @torch.no_grad()
    def __init__(self, state_space: StateSpace) -> None:
        system: Any
        system, c = state_space.discrete_system()
        u, v = (torch.cat([half, half.conj()], dim=-1) for half in (system.u, system.v))  # (H, 2 N)
        rank_one = u.unsqueeze(-1) * v.unsqueeze(-2)  # (H, 2 N, 2 N)
        self.a = torch.diag_embed(torch.cat([system.a, system.a.conj()], dim=-1)) - rank_one
        self.b = torch.cat([system.b, system.b.conj()], dim=-1)  # (H, 2 N)
        self.c = torch.cat([c, c.conj()], dim=-1)  # (outputs, H, 2 N)
        self.skip = state_space.D.detach()  # (outputs, H)

    def __call__(self, u: Tensor, state: Tensor, rate: float = 1.0) -> tuple[Tensor, Tensor]:
        """Process one sample ``u`` (B, H); return the output (B, outputs · H) and the next state.

        Raises:
            ValueError: ``rate`` is not 1.
        """
        if rate != 1:
            raise ValueError(f"the dense step supports rate 1 only, got {rate}")
        if state.shape[-1] < self.b.shape[-1]:  # the initial state has one half of the conjugate pairs
            state = torch.cat([state, state.conj()], dim=-1)
        state = torch.einsum("hmn,bhn->bhm", self.a, state) + self.b * u.unsqueeze(-1)
        y = torch.einsum("mhn,bhn->bmh", self.c, state).real + self.skip * u.unsqueeze(1)
        y = y.flatten(1)
        return y, state


def _options() -> argparse.Namespace:
    parser = Parser(description="Measure samples per second of autoregressive generation for each engine.")
    parser.add_argument("--unet", action=argparse.BooleanOptionalAction, default=True, help="the U-net configuration")
    parser.add_argument("--d-model", type=positive, default=64, help="features at the raw rate")
    parser.add_argument("--n-layers", type=positive, default=8, help="blocks per stage")
    parser.add_argument("--streams", type=positive, nargs="+", default=[1, 32], help="clips generated together")
    parser.add_argument(
        "--samples",
        type=positive,
        default=64,
        help=f"timed samples per clip; {COMPILED_SAMPLES} times as many for the compiled engine",
    )
    parser.add_argument("--weights", choices=WEIGHTS, nargs="+", default=list(WEIGHTS), help="formats of the weights")
    parser.add_argument("--rounds", type=positive, default=ROUNDS, help="timed runs of each engine, in turn")
    parser.add_argument("--skip-eager", action="store_true", help="measure the compiled engine only")
    parser.add_argument("--prefix", type=positive, default=8000, help="samples of the prefix")
    parser.add_argument("--threads", type=positive, default=None, help="CPU threads (all cores if not given)")
    return parser.parse_args()


class Run(NamedTuple):
    """Time of a run in seconds, and the CPU time of all threads of this process during it."""

    seconds: float
    cpu_seconds: float


def _print_streams(model: Any, dense: Any, streams: int, options: argparse.Namespace) -> None:
    from sashimi_diffusion.generation.numba_engine import NumbaEngine

    compiled = {name: NumbaEngine(model, streams, weights=name) for name in options.weights}
    eager = {} if options.skip_eager else {"dense": EagerEngine(dense, streams), "eager": EagerEngine(model, streams)}
    counts = dict.fromkeys(eager, options.samples) | dict.fromkeys(compiled, COMPILED_SAMPLES * options.samples)
    runs = {name: create_run(engine, model, streams, counts[name]) for name, engine in (eager | compiled).items()}
    for name in compiled:
        runs[name]()  # compiles the step, or loads it from the cache
    timed = _in_turn(runs, options.rounds)
    samples = {name: streams * count for name, count in counts.items()}
    median = {name: samples[name] / statistics.median_high([run.seconds for run in timed[name]]) for name in runs}
    print(f"{streams:>4} streams:")
    for name in runs:
        best = min(timed[name])
        line = f"{name:>12} {median[name]:>8.0f} samples/s (best {samples[name] / best.seconds:.0f})"
        if name in compiled:
            bandwidth = _bytes_per_step(compiled[name]) * samples[name] / streams / best.seconds
            times = [f"{median[name] / median[other]:.0f} times {other}" for other in eager]
            details = [*times, f"{best.cpu_seconds / best.seconds:.2f} cores", f"reads {bandwidth / 1e9:.1f} GB/s"]
            line += f"; {', '.join(details)}"
        print(line, flush=True)


def _in_turn(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[Run]]:
    """Return the times of every function in each of the rounds, in which all functions run once."""
    timed: dict[str, list[Run]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, function in runs.items():
            cpu, started = time.process_time(), time.perf_counter()
            function()
            timed[name].append(Run(time.perf_counter() - started, time.process_time() - cpu))
    return timed


def _print_prefix(model: Any, length: int, samples: int) -> None:
    prefix = torch.randint(model.config.num_tokens, (1, length))
    seconds = interleaved_medians(
        {
            "pass": torch.no_grad()(lambda: model.prefill(prefix)),
            "steps": create_run(EagerEngine(model, 1), model, 1, samples),
        },
        ROUNDS,
    )
    stepped = seconds["steps"] / samples * length
    print(
        f"prefix of {length} samples: {seconds['pass']:.2f} s in one pass, {stepped:.0f} s in eager steps, "
        f"{stepped / seconds['pass']:.0f} times"
    )


def create_run(engine: Any, model: Any, streams: int, samples: int) -> Callable[[], object]:
    """Return a function that generates ``samples`` samples of ``streams`` clips with an engine for ``model``."""
    tokens = torch.full((streams,), model.start_token, device=model.device)
    uniforms = torch.rand(streams, samples, dtype=torch.float64)
    return lambda: engine.run(tokens, uniforms, Sampling())


def _bytes_per_step(engine: Any) -> float:
    """Return the average memory traffic of a step; all streams of a thread share one read of the weights.

    The terms are those of the README of the compiled engine. An operation of stage s runs once in strides[s] samples. A
    state space reads its parameters and reads and writes its states once per span. At every sample it reads on average
    half of its kernel and half of the inputs of the span, reads one first term and writes one input.
    """
    from sashimi_diffusion.generation.numba_engine.operations import Kind, Operation
    from sashimi_diffusion.generation.numba_engine.state_spaces import parameters_size
    from sashimi_diffusion.generation.numba_engine.vectors import SPAN, whole_vectors

    program = engine.program
    operations = [operation for row in program.operations.tolist() if (operation := Operation(*row)).weights]
    ends = [*(operation.weights for operation in operations[1:]), program.head]
    map_ends = [*(operation.maps for operation in operations[1:]), program.head_map]
    map_bytes = program.maps.itemsize
    shared = 4.0 * (program.weights.size - program.head) + map_bytes * (program.maps.size - program.head_map)
    per_stream = 0.0
    for operation, end, map_end in zip(operations, ends, map_ends, strict=True):
        size, stride = float(end - operation.weights), program.strides[operation.stage]
        if operation.is_s4:
            features, n = whole_vectors(operation.width), operation.inner
            parameters = parameters_size(operation.kind == Kind.S4_NPLR, operation.width, n)
            size -= parameters * (1 - 1 / SPAN) + features * SPAN / 2
            per_stream += 4 * features * (4 * n / SPAN + SPAN / 2 + 2) / stride
        shared += (4 * size + map_bytes * (map_end - operation.maps)) / stride
    reads = 1 if engine.batch_size == 1 else engine.threads
    return reads * shared + engine.batch_size * per_stream


def _read_bandwidth() -> float:
    """Return bytes per second that one thread reads from main memory."""
    numbers = np.ones(_READ_BYTES // 4, dtype=np.float32)
    seconds = interleaved_medians({"sum": lambda: numbers.sum()}, ROUNDS)["sum"]
    return _READ_BYTES / seconds


if __name__ == "__main__":
    sys.exit(main())
