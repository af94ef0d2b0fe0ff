"""Samples drawn during autoregressive training: wav files and a contact sheet."""

import sys
from pathlib import Path
from typing import Any, cast

import torch

from sashimi_diffusion.data.audio import write_audio
from sashimi_diffusion.data.pictures import contact_sheet
from sashimi_diffusion.files import folder_written_beside
from sashimi_diffusion.generation.engines import require_engine
from sashimi_diffusion.generation.runaway import runaway_second
from sashimi_diffusion.generation.sampling import Sampling
from sashimi_diffusion.models import AutoregressiveModel
from sashimi_diffusion.pipelines import SashimiAutoregressivePipeline
from sashimi_diffusion.pipelines.autoregressive import AutoregressivePipelineOutput
from sashimi_diffusion.training.autoregressive.config import GenerationConfig
from sashimi_diffusion.training.checkpoints import checkpoint_name


def save_samples(run: Path, step: int, model: AutoregressiveModel, config: GenerationConfig) -> str:
    """Draw samples into a folder such as ``run``/samples/step-000100: wav files and contact_sheet.png.

    Sample i uses the same random numbers at every step.

    Returns:
        str: a message that names the samples that degenerate into noise; empty if there are none.
    """
    pipeline = SashimiAutoregressivePipeline(model, config.temperature, config.top_p)
    pipeline.set_progress_bar_config(desc="samples", leave=False, disable=not sys.stderr.isatty())
    output = pipeline(
        batch_size=config.num_samples,
        audio_length_in_s=config.seconds,
        generator=[torch.Generator().manual_seed(config.seed + index) for index in range(config.num_samples)],
        engine=config.engine,
    )
    audios = cast(AutoregressivePipelineOutput, output).audios[:, 0]  # (B, L)
    rate = cast(Any, model).config.sample_rate
    titles = [f"sample {index}" for index in range(config.num_samples)]
    with folder_written_beside(run / "samples" / checkpoint_name(step)) as folder:
        for index, audio in enumerate(audios):
            write_audio(folder / f"{index:02d}.wav", audio, rate)
        contact_sheet(list(audios), rate, titles=titles).save(folder / "contact_sheet.png")
    noisy = [title for title, audio in zip(titles, audios, strict=True) if runaway_second(audio, rate) is not None]
    return f"noise until the end of {', '.join(noisy)}" if noisy else ""


def check_generation(config: GenerationConfig, model: AutoregressiveModel, device: torch.device) -> None:
    """Check before training that samples of ``model`` can be drawn on ``device``.

    Raises:
        UserError: the temperature is too low, or the engine cannot run there.
    """
    Sampling(config.temperature, None, config.top_p)
    require_engine(config.engine, model, device)
