"""Count what a GPU would do: kernel launches, memory traffic, synchronizations and transfers. No GPU is needed.

    python -m sashimi_diffusion.benchmarks.counters
    python -m sashimi_diffusion.benchmarks.counters --d-model 64 --parameterization diag --by-operation 20 --by-line 20

The networks are on the device "meta", see :mod:`sashimi_kernels.counters`, under autocast to bfloat16 and with the
kernels of the backend "triton". A forward pass is one call inside of ``frozen(model)``, after its kernels are computed.
A training step is forward, mean square error, backward, gradient norm, clipping, fused AdamW and the moving average,
all on the device. A recurrent step is one sample of the autoregressive U-net of 8 blocks per stage, including the
choice of the token, as a mean over a frame of the lowest stage.

The floor is the traffic if every pass were fused: nine passes over the bfloat16 features of each block in a forward
pass, and three times as many in training.

A profiler on an H200 (torch 2.11, Triton 3.6, 2026-11-27, commit 70bbb2c) counted these launches with 16,000 samples, a
batch of 16 and d_model 64. The counter counts the same network at commit 77ca096 in bfloat16:

=============================  ========  =======
.                              profiler  counter
=============================  ========  =======
forward, kept kernels, NPLR       1,117    1,175
training step, NPLR              14,900   14,851
training step, diagonal           7,843    8,212
=============================  ========  =======
"""

import collections
import contextlib
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from sashimi_diffusion.command_line import Parser, positive, run
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.generation.sampling import Sampling, sample_tokens
from sashimi_diffusion.models import SashimiAutoregressive, SashimiDenoiser
from sashimi_diffusion.models.backbone import layers_per_stage
from sashimi_diffusion.ssm import frozen
from sashimi_diffusion.training.config import OptimizerConfig
from sashimi_diffusion.training.ema import Ema
from sashimi_diffusion.training.optimizer import gradient_norm, parameter_groups
from sashimi_kernels import BackendUnavailableError
from sashimi_kernels.backends import ENVIRONMENT_VARIABLE
from sashimi_kernels.counters import Counter, Counts, Operation

LENGTH, BATCH_SIZE, STREAMS = 16000, 16, 32
PASSES = 9
PARAMETERIZATIONS = ("nplr", "diag")


class Row(NamedTuple):
    """Counts of a run that are divided by ``steps``, and the bytes of its floor, if it has one."""

    name: str
    counts: Counts
    floor: int | None = None
    steps: int = 1


def main() -> int:
    """Print the table and return the exit code."""
    return run(_count)


def _count() -> None:
    parser = Parser(
        description="Count kernel launches, memory traffic, synchronizations and transfers on a GPU, without a GPU."
    )
    parser.add_argument("--d-model", type=positive, nargs="+", default=[64, 128], help="features at the raw rate")
    parser.add_argument("--parameterization", nargs="+", choices=PARAMETERIZATIONS, default=PARAMETERIZATIONS)
    parser.add_argument("--by-operation", type=positive, metavar="N", help="list the N operations with most launches")
    parser.add_argument("--by-line", type=positive, metavar="N", help="list the N lines of code with most launches")
    options = parser.parse_args()
    try:
        rows = list(_rows(options.d_model, options.parameterization))
    except BackendUnavailableError as error:
        raise UserError(str(error)) from None
    print(f"bfloat16, {LENGTH:,} samples\n")
    print("| | launches | GB | floor, GB | ratio | synchronizations | transfers |\n|---|---|---|---|---|---|---|")
    for row in rows:
        print(_line(row))
    for row in rows:
        _print_waits(row)
        if options.by_operation:
            _print_sums(row, "operation", row.counts.operations, options.by_operation)
        if options.by_line:
            _print_sums(row, "line", row.counts.lines, options.by_line)


def denoiser(d_model: int, parameterization: str) -> Any:
    """Return a denoiser of the published size on the device "meta"."""
    with torch.device("meta"):
        return SashimiDenoiser(d_model=d_model, parameterization=parameterization, sample_size=LENGTH)


def count_forward(model: Any, batch_size: int) -> Counts:
    """Count a forward pass in evaluation mode; its convolution kernels are computed before."""
    sample, timestep = _inputs(batch_size)
    model.eval()
    with _gpu_kernels(), torch.no_grad(), frozen(model):
        for _ in range(2):
            with Counter() as counts, torch.autocast("meta", torch.bfloat16):
                model(sample, timestep)
    return counts


def count_training_step(model: Any, batch_size: int) -> Counts:
    """Count a training step that never waits for the device."""
    sample, timestep = _inputs(batch_size)
    noise = torch.empty_like(sample)
    config = OptimizerConfig()
    model.train()
    with torch.device("meta"):
        ema, optimizer = Ema(model, decay=0.999), MetaAdamW(model, config)
    with _gpu_kernels(), Counter() as counts:
        with torch.autocast("meta", torch.bfloat16):
            prediction = model(sample, timestep).sample
        loss = (prediction.float() - noise).square().mean()
        loss.backward()
        norm = gradient_norm(model)
        usable = loss.isfinite() & norm.isfinite()
        optimizer.step((norm / (config.gradient_clip or 1.0)).clamp(min=1), usable.logical_not().float())
        ema.update_where(usable, model)
    model.zero_grad()
    return counts


def count_recurrent_steps(d_model: int, parameterization: str, batch_size: int) -> tuple[Counts, int]:
    """Count the recurrent steps of a frame of the lowest stage; return the counts and the number of steps."""
    with torch.device("meta"):
        model = SashimiAutoregressive(d_model=d_model, parameterization=parameterization, unet=True).eval()
        tokens, uniforms = torch.zeros(batch_size, dtype=torch.int64), torch.zeros(batch_size, dtype=torch.float64)
    with _gpu_kernels(), torch.no_grad(), frozen(model):
        state = model.initial_state(batch_size)
        for _ in range(2):
            with Counter() as counts, torch.autocast("meta", torch.bfloat16):
                for _ in range(model.length_multiple):
                    logits, state = model.step(tokens, state)
                    tokens, _, _ = sample_tokens(logits, uniforms, Sampling())
    return counts, model.length_multiple


def floor_bytes(config: Any, batch_size: int, length: int, training: bool) -> int:
    """Return the bytes of ``PASSES`` passes over the bfloat16 features of every block, three times that in training.

    Args:
        config: config of a :class:`SashimiDenoiser`.
        batch_size: number of waveforms.
        length: samples of a waveform.
        training: forward and backward instead of forward.
    """
    layers = layers_per_stage(config.n_layers, len(config.pool) + 1)
    elements, width = 0, config.d_model  # of one pass over the features of all blocks; of the current stage
    for stage, n_blocks in enumerate(layers):
        both_ways = config.unet and stage < len(config.pool)
        elements += n_blocks * (1 + both_ways) * width * length
        if stage < len(config.pool):
            width, length = width * config.expand, length // config.pool[stage]
    return PASSES * (3 if training else 1) * 2 * batch_size * elements


class MetaAdamW:
    """AdamW as one multi-tensor kernel per parameter group, which ``torch.optim.AdamW`` refuses for "meta"."""

    def __init__(self, model: Any, config: OptimizerConfig) -> None:
        self.groups = parameter_groups(model, config)
        self.state: dict[Tensor, tuple[Tensor, Tensor, Tensor]] = {
            parameter: (torch.zeros_like(parameter), torch.zeros_like(parameter), torch.zeros(()))
            for group in self.groups
            for parameter in group["params"]
        }

    @torch.no_grad()
    def step(self, grad_scale: Tensor, found_inf: Tensor) -> None:
        """Divide the gradient by ``grad_scale`` and update the parameters, unless ``found_inf`` is 1."""
        for group in self.groups:
            parameters = group["params"]
            averages, squares, steps = (list(part) for part in zip(*map(self.state.get, parameters), strict=True))
            adamw(
                parameters,
                [parameter.grad for parameter in parameters],
                averages,
                squares,
                [],
                steps,
                capturable=True,
                fused=True,
                grad_scale=grad_scale,
                found_inf=found_inf,
                amsgrad=False,
                beta1=0.9,
                beta2=0.999,
                lr=torch.empty((), device="meta"),
                weight_decay=group["weight_decay"],
                eps=1e-8,
                maximize=False,
            )


@contextlib.contextmanager
def _gpu_kernels() -> Iterator[None]:
    """Select the backend "triton" inside this context."""
    before = os.environ.get(ENVIRONMENT_VARIABLE)
    os.environ[ENVIRONMENT_VARIABLE] = "triton"
    try:
        yield
    finally:
        del os.environ[ENVIRONMENT_VARIABLE]
        if before is not None:
            os.environ[ENVIRONMENT_VARIABLE] = before


def _inputs(batch_size: int) -> tuple[Tensor, Tensor]:
    """Return noisy waveforms and timesteps on the device "meta"."""
    timestep = torch.empty(batch_size, dtype=torch.int64, device="meta")
    return torch.empty(batch_size, 1, LENGTH, device="meta"), timestep


def _rows(d_models: list[int], parameterizations: list[str]) -> Iterator[Row]:
    for d_model in d_models:
        for parameterization in parameterizations:
            model, name = denoiser(d_model, parameterization), f"d {d_model}, {parameterization}"
            for batch_size in (1, BATCH_SIZE):
                floor = floor_bytes(model.config, batch_size, LENGTH, training=False)
                yield Row(f"forward, {name}, batch {batch_size}", count_forward(model, batch_size), floor)
            floor = floor_bytes(model.config, BATCH_SIZE, LENGTH, training=True)
            yield Row(f"training step, {name}, batch {BATCH_SIZE}", count_training_step(model, BATCH_SIZE), floor)
            counts, steps = count_recurrent_steps(d_model, parameterization, STREAMS)
            yield Row(f"recurrent step, {name}, {STREAMS} streams", counts, steps=steps)


def _line(row: Row) -> str:
    """Return a row of the Markdown table."""
    counts, steps = row.counts, row.steps
    floor = "" if row.floor is None else f"{row.floor / 1e9:.3g}"
    ratio = "" if row.floor is None else f"{counts.bytes / row.floor:.1f}"
    launches, traffic = f"{counts.launches / steps:,.0f}", f"{counts.bytes / steps / 1e9:.3g}"
    waits, transfers = (f"{len(places) / steps:g}" for places in (counts.synchronizations, counts.transfers))
    return f"| {' | '.join((row.name, launches, traffic, floor, ratio, waits, transfers))} |"


def _print_waits(row: Row) -> None:
    """Print where a run waits for the device or copies from the CPU."""
    for place, count in collections.Counter(row.counts.synchronizations + row.counts.transfers).most_common():
        print(f"\n{row.name}: {count} x {place}")


def _print_sums(row: Row, heading: str, sums: dict[str, Operation], number: int) -> None:
    """Print the operations or lines with the most launches, summed over all steps of a run."""
    print(f"\n{row.name}" + (f", sums of {row.steps} steps" if row.steps > 1 else ""))
    print(f"\n| {heading} | calls | launches | GB |\n|---|---|---|---|")
    for name, operation in sorted(sums.items(), key=lambda item: -item[1].launches)[:number]:
        print(f"| {name} | {operation.calls} | {operation.launches} | {operation.bytes / 1e9:.3g} |")


if __name__ == "__main__":
    raise SystemExit(main())
