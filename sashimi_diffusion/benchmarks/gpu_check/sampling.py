"""Sampling of one second with the bundled pipeline, with and without a CUDA graph, compared with the CPU's audio."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from sashimi_diffusion.benchmarks.gpu_check.rows import Row, Setting
from sashimi_diffusion.benchmarks.gpu_check.timing import attempted
from sashimi_diffusion.pipelines import SashimiPipeline
from sashimi_diffusion.schedulers import create_scheduler
from sashimi_kernels.measuring import interleaved_medians

_NAME = "sashimi-digits"
_SCHEDULERS = {200: None, 20: "unipc-karras"}  # None: all steps of the pipeline's own scheduler
_REPEATS = 3


def measure(setting: Setting) -> Iterator[Row]:
    """Yield the time of a call in 200 and in 20 steps, and the difference of its audio to that of the CPU."""
    steps = {3: "unipc-karras"} if setting.tiny else _SCHEDULERS
    seconds = 0.05 if setting.tiny else 1.0
    audios = {}
    for count, scheduler in steps.items():
        name = f"sampling {seconds:g} s in {count} steps"
        for dtype, graph in ((torch.float32, True), (torch.float32, False), (torch.bfloat16, True)):
            if graph and setting.device != "cuda":
                continue
            variant = str(dtype).removeprefix("torch.") + (", graph" if graph else "")

            def row(name=name, variant=variant, count=count, scheduler=scheduler, dtype=dtype, graph=graph) -> Row:
                pipeline = _pipeline(scheduler, dtype, setting.device, graph)
                audios[count, variant] = _audio(pipeline, count, seconds)  # records the graph and compiles kernels
                times = interleaved_medians({"run": lambda: _audio(pipeline, count, seconds)}, _REPEATS, setting.device)
                return Row(name, variant, 1e3 * times["run"], "ms")

            yield attempted(name, variant, row, setting.device)
    for count, scheduler in steps.items():
        expected = _audio(_pipeline(scheduler, torch.float32, "cpu", False), count, seconds)
        for (own, variant), audio in audios.items():
            if own == count:
                difference = (audio.cpu().float() - expected).abs().max().item()
                yield Row(f"largest difference to the CPU's audio, {count} steps", variant, difference)


def _pipeline(scheduler: str | None, dtype: torch.dtype, device: str, graph: bool) -> Any:
    pipeline: Any = SashimiPipeline.from_pretrained(_NAME, torch_dtype=dtype)
    if scheduler is not None:
        pipeline.scheduler = create_scheduler(scheduler, pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.cuda_graph = graph
    return pipeline.to(device)


def _audio(pipeline: Any, steps: int, seconds: float) -> Tensor:
    """Return the same word at every call, (1, 1, L)."""
    return pipeline(
        class_labels=7,
        num_inference_steps=steps,
        audio_length_in_s=seconds,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    ).audios
