"""Compile the Triton kernels of all parts in parallel, so that the time of the other parts is for measuring.

Triton compiles a form of a kernel at its first launch, one after the other. Here the models of the parts run without
launching kernels, which shows the forms that they need.
"""

import os
from collections.abc import Callable, Iterator
from typing import Any

import torch

from sashimi_diffusion.benchmarks.generation import create_run
from sashimi_diffusion.benchmarks.gpu_check import denoisers, streams
from sashimi_diffusion.benchmarks.gpu_check.recipe import CONFIG
from sashimi_diffusion.benchmarks.gpu_check.rows import Row, Setting
from sashimi_diffusion.generation import create_engine
from sashimi_diffusion.pipelines import SashimiPipeline
from sashimi_diffusion.ssm import frozen
from sashimi_diffusion.training.config import load_config
from sashimi_diffusion.training.diffusion.config import DiffusionConfig
from sashimi_kernels.backends import ENVIRONMENT_VARIABLE
from sashimi_kernels.warm_up import compile_forms, forms_only


def measure(setting: Setting) -> Iterator[Row]:
    """Yield the number of forms that the parts need, and how many of them were not in Triton's cache."""
    os.environ[ENVIRONMENT_VARIABLE] = "triton"
    with forms_only() as forms:
        for run in runs(setting):
            run()
            torch.cuda.empty_cache()
    yield Row("forms of kernels", value=len(forms))
    yield Row("forms that were compiled", value=compile_forms(forms, os.cpu_count() or 1))


def runs(setting: Setting) -> Iterator[Callable[[], object]]:
    """Yield functions that launch the kernels of the parts. The values that they compute are not used."""
    for size in dict.fromkeys((*denoisers.forward_sizes(setting.tiny), *denoisers.training_sizes(setting.tiny))):
        for parameterization in denoisers.PARAMETERIZATIONS:
            model = denoisers.create_denoiser(size, parameterization, setting.tiny).to(setting.device)
            for precision in ("bfloat16", "float32"):
                yield _passes(model, size.batch, 64 if setting.tiny else denoisers.LENGTH, precision)
    # The bundled model has the sizes of the small recipe.
    recipe = load_config(DiffusionConfig, CONFIG, [])
    for dtype in (torch.float32, torch.bfloat16):
        model = SashimiPipeline.from_pretrained("sashimi-digits", torch_dtype=dtype).model.to(setting.device)
        precisions = ("bfloat16", "float32") if dtype == torch.float32 else ("float32",)
        for batch in (1,) if setting.tiny else (1, recipe.training.batch_size):
            for precision in precisions:
                yield _passes(model, batch, 64 if setting.tiny else recipe.data.length, precision)
    for model in streams.models(setting):
        for n_streams in streams.numbers(setting):
            engine = create_engine("eager", model, n_streams)
            yield create_run(engine, model, n_streams, streams.PERIOD)


def _passes(model: Any, batch: int, length: int, precision: str) -> Callable[[], None]:
    """Return a function that runs a denoiser forward with kernels computed before, and forward and backward."""
    parameter = next(model.parameters())
    sample = torch.randn(batch, 1, length, device=parameter.device, dtype=parameter.dtype)
    timestep = torch.zeros(batch, dtype=torch.int64, device=parameter.device)
    labels = timestep if model.config.class_names else None

    def run() -> None:
        with torch.autocast(parameter.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            with torch.no_grad(), frozen(model.eval()):
                model(sample, timestep, labels)
            loss = model.train()(sample, timestep, labels).sample.float().square().mean()
        loss.backward()
        model.zero_grad(set_to_none=True)

    return run
