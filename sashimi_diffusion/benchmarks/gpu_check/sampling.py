"""Sampling of one second with the bundled pipeline, with and without a CUDA graph, compared with the CPU's audio."""

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sashimi_diffusion.benchmarks.gpu_check.rows import Row, Setting
from sashimi_diffusion.benchmarks.gpu_check.timing import attempted
from sashimi_diffusion.pipelines import SashimiPipeline
from sashimi_diffusion.schedulers import create_scheduler
from sashimi_kernels.measuring import interleaved_medians

_NAME = "sashimi-digits"
_REPEATS = 3


class _Call(NamedTuple):
    """A call of the pipeline. Without a scheduler it runs that of the pipeline."""

    steps: int
    scheduler: str | None
    seconds: float

    def audio(self, pipeline: Any) -> Tensor:
        """Return the same word at every call, (1, 1, L)."""
        return pipeline(
            class_labels=7,
            num_inference_steps=self.steps,
            audio_length_in_s=self.seconds,
            generator=torch.Generator().manual_seed(0),
            output_type="pt",
        ).audios

    def pipeline(self, dtype: torch.dtype, device: str, graph: bool) -> Any:
        """Return a pipeline for this call."""
        pipeline: Any = SashimiPipeline.from_pretrained(_NAME, torch_dtype=dtype)
        if self.scheduler is not None:
            pipeline.scheduler = create_scheduler(self.scheduler, pipeline.scheduler.config)
        pipeline.set_progress_bar_config(disable=True)
        pipeline.cuda_graph = graph
        return pipeline.to(device)


def measure(setting: Setting) -> Iterator[Row]:
    """Yield the time of a call in 200 and in 20 steps, and the difference of its audio to that of the CPU."""
    calls = [_Call(3, "unipc-karras", 0.05)] if setting.tiny else [_Call(200, None, 1), _Call(20, "unipc-karras", 1)]
    modes = [(torch.float32, True), (torch.float32, False), (torch.bfloat16, True)]
    audios: dict[tuple[_Call, str], Tensor] = {}
    for call in calls:
        name = f"sampling {call.seconds:g} s in {call.steps} steps"
        for dtype, graph in modes if setting.device == "cuda" else [(torch.float32, False)]:
            variant = str(dtype).removeprefix("torch.") + (", graph" if graph else "")
            row = partial(_measured, name, variant, call, dtype, graph, setting.device, audios)
            yield attempted(name, variant, row, setting.device)
    for call in calls:
        expected = call.audio(call.pipeline(torch.float32, "cpu", False))
        for (own, variant), audio in audios.items():
            if own == call:
                difference = (audio.cpu().float() - expected).abs().max().item()
                yield Row(f"largest difference to the CPU's audio, {call.steps} steps", variant, difference)


def _measured(
    name: str,
    variant: str,
    call: _Call,
    dtype: torch.dtype,
    graph: bool,
    device: str,
    audios: dict[tuple[_Call, str], Tensor],
) -> Row:
    pipeline = call.pipeline(dtype, device, graph)
    audios[call, variant] = call.audio(pipeline)  # records the graph and compiles kernels
    seconds = interleaved_medians({"run": partial(call.audio, pipeline)}, _REPEATS, device)
    return Row(name, variant, 1e3 * seconds["run"], "ms")
