"""Forward passes and training steps of the published denoisers, in float32 and bfloat16, eager and as CUDA graphs."""

import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sashimi_diffusion.benchmarks.gpu_check.rows import Row, Setting
from sashimi_diffusion.benchmarks.gpu_check.timing import attempted, timed_row
from sashimi_diffusion.models import SashimiDenoiser, WaveNetDenoiser
from sashimi_diffusion.ssm import frozen
from sashimi_kernels.backends import ENVIRONMENT_VARIABLE

LENGTH = 16000
PARAMETERIZATIONS = ("nplr", "diag")


class Size(NamedTuple):
    """Features of a model at the raw rate, and batch size."""

    d_model: int
    batch: int

    def __str__(self) -> str:
        return f"d {self.d_model}, B {self.batch}"


class Mode(NamedTuple):
    """How a model runs: bfloat16 is autocast."""

    precision: str
    graph: bool

    def __str__(self) -> str:
        return self.precision + (", graph" if self.graph else "")


def forward_sizes(tiny: bool) -> list[Size]:
    """Return the sizes of the measured forward passes."""
    return [Size(8, 1), Size(8, 2)] if tiny else [Size(64, 1), Size(64, 16), Size(128, 16)]


def training_sizes(tiny: bool) -> list[Size]:
    """Return the sizes of the measured training steps."""
    return [Size(8, 2)] if tiny else [Size(64, 16), Size(128, 16)]


def forward(setting: Setting, backend: str) -> Iterator[Row]:
    """Yield the time of a forward pass for each size, parameterization and mode; kernels are computed beforehand."""
    os.environ[ENVIRONMENT_VARIABLE] = backend
    for size in forward_sizes(setting.tiny):
        for parameterization in PARAMETERIZATIONS:
            model = create_denoiser(size, parameterization, setting.tiny).to(setting.device).eval()
            sample = create_sample(size.batch, setting)
            with frozen(model):
                for mode in modes(setting.device):
                    run = forward_pass(model, sample, mode.precision)
                    yield _row(f"forward {size}", parameterization, backend, run, mode, setting)


def training(setting: Setting, backend: str) -> Iterator[Row]:
    """Yield the time of a training step with AdamW for each size, parameterization and mode."""
    os.environ[ENVIRONMENT_VARIABLE] = backend
    for size in training_sizes(setting.tiny):
        for parameterization in PARAMETERIZATIONS:
            for mode in modes(setting.device):
                model = create_denoiser(size, parameterization, setting.tiny).to(setting.device).train()
                run = training_step(model, create_sample(size.batch, setting), mode)
                yield _row(f"training step {size}", parameterization, backend, run, mode, setting)
                del model, run


def wavenet(setting: Setting) -> Iterator[Row]:
    """Yield the time of a forward pass of the paper's WaveNet with 6.8 million parameters for each batch and mode."""
    channels, n_layers = (8, 2) if setting.tiny else (128, 30)
    model = WaveNetDenoiser(residual_channels=channels, skip_channels=channels, n_layers=n_layers, dilation_cycle=10)
    model = model.to(setting.device).eval()
    for batch in (1, 2) if setting.tiny else (1, 16):
        sample = create_sample(batch, setting)
        for mode in modes(setting.device):
            run = forward_pass(model, sample, mode.precision)
            yield _row(f"WaveNet forward, B {batch}", "", "", run, mode, setting)


def create_denoiser(size: Size, parameterization: str, tiny: bool = False) -> SashimiDenoiser:
    """Return a denoiser of the published size with random weights: S4, or S4D with the initialization S4D-Lin."""
    options: dict[str, Any] = {} if parameterization == "nplr" else {"initialization": "lin", "discretization": "zoh"}
    if tiny:
        options |= {"n_layers": 1, "pool": (2, 2), "n_state": 8, "embedding_hidden": 16, "embedding_dim": 16}
    return SashimiDenoiser(d_model=size.d_model, parameterization=parameterization, **options)


def create_sample(batch: int, setting: Setting) -> Tensor:
    """Return noise, (B, 1, L)."""
    return torch.randn(batch, 1, 64 if setting.tiny else LENGTH, device=setting.device)


def forward_pass(model: nn.Module, sample: Tensor, precision: str) -> Callable[[], None]:
    """Return a function that runs the model on ``sample`` (B, 1, L) without gradients."""
    timestep = torch.zeros(len(sample), dtype=torch.int64, device=sample.device)

    def run() -> None:
        with torch.no_grad(), torch.autocast(sample.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            model(sample, timestep)

    return run


def training_step(model: nn.Module, sample: Tensor, mode: Mode) -> Callable[[], None]:
    """Return a function that runs forward pass, backward pass and AdamW on ``sample`` (B, 1, L)."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True, capturable=mode.graph)
    loss_and_gradient = gradient(model, sample, mode.precision)

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss_and_gradient()
        optimizer.step()

    return run


def gradient(model: nn.Module, sample: Tensor, precision: str) -> Callable[[], None]:
    """Return a function that runs forward and backward pass on ``sample`` (B, 1, L)."""
    timestep = torch.zeros(len(sample), dtype=torch.int64, device=sample.device)

    def run() -> None:
        with torch.autocast(sample.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            loss = model(sample, timestep).sample.float().square().mean()
        loss.backward()

    return run


def modes(device: str) -> list[Mode]:
    """Return the modes of a device: only CUDA has graphs."""
    graph = [Mode("bfloat16", True), Mode("float32", True)] if device == "cuda" else []
    return [*graph, Mode("bfloat16", False), Mode("float32", False)]


def variant(parameterization: str, precision: str, backend: str) -> str:
    """Return the variant of an eager row; a graph's has ", graph" after it."""
    return ", ".join(filter(None, (parameterization, precision, backend)))


def _row(name: str, parameterization: str, backend: str, run: Callable[[], None], mode: Mode, setting: Setting) -> Row:
    how = variant(parameterization, mode.precision, backend) + (", graph" if mode.graph else "")
    return attempted(name, how, lambda: timed_row(name, how, run, setting.device, mode.graph), setting.device)
