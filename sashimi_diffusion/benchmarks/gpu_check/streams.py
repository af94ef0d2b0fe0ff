"""Samples per second of autoregressive generation with every engine, for 1, 32 and 256 clips at a time."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from sashimi_diffusion.benchmarks.generation import create_run
from sashimi_diffusion.benchmarks.gpu_check.rows import Row, Setting
from sashimi_diffusion.benchmarks.gpu_check.timing import attempted
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.generation import ENGINES, create_engine
from sashimi_diffusion.models import SashimiAutoregressive
from sashimi_kernels.measuring import interleaved_medians, seconds_of

PERIOD = 16  # samples after which all pooled stages are at the same position again
_SECONDS = 0.5
_ROUNDS = 3


def measure(setting: Setting) -> Iterator[Row]:
    """Yield the rates of the engines that can run."""
    network = "autoregressive, tiny" if setting.tiny else "autoregressive"
    for model in models(setting):
        for streams in numbers(setting):
            for name in (name for name in ENGINES if name != "auto"):
                row = Row(
                    f"{network}, {streams} streams",
                    f"{name}, {str(model.dtype).removeprefix('torch.')}",
                    unit="samples/s",
                )
                yield attempted(
                    row.name, row.variant, partial(_measured, row, model, streams, name, setting), setting.device
                )


def models(setting: Setting) -> Iterator[SashimiAutoregressive]:
    """Yield a network of the sizes of the published "sashimi-sc09-unet", in each measured dtype."""
    sizes: dict[str, Any] = {"d_model": 8, "n_layers": 1} if setting.tiny else {"d_model": 64, "n_layers": 8}
    for dtype in (torch.bfloat16, torch.float32) if setting.device == "cuda" else (torch.float32,):
        yield SashimiAutoregressive(unet=True, **sizes).eval().to(setting.device, dtype)


def numbers(setting: Setting) -> tuple[int, ...]:
    """Return the measured numbers of streams."""
    return (1, 2) if setting.tiny else (1, 32, 256)


def _measured(row: Row, model: Any, streams: int, engine_name: str, setting: Setting) -> Row:
    """Return the row with the rate of an engine, or with the reason why it cannot run."""
    try:
        engine = create_engine(engine_name, model, streams)
    except UserError as error:
        return replace(row, problem=str(error))
    warm_up = create_run(engine, model, streams, 2 * PERIOD)
    warm_up()
    once = seconds_of(warm_up, setting.device)
    samples = PERIOD if setting.tiny else max(1, min(4000, int(2 * _SECONDS / once))) * 2 * PERIOD
    seconds = interleaved_medians(
        {"run": create_run(engine, model, streams, samples)}, 1 if setting.tiny else _ROUNDS, setting.device
    )
    return replace(row, value=streams * samples / seconds["run"])
