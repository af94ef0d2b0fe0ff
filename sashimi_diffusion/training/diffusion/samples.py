"""Samples drawn during diffusion training: wav files and a contact sheet."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from sashimi_diffusion.data.audio import write_audio
from sashimi_diffusion.data.pictures import contact_sheet
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.files import folder_written_beside, name_of
from sashimi_diffusion.pipelines.labels import known_labels, labels_in_turn
from sashimi_diffusion.pipelines.sashimi import SashimiPipeline
from sashimi_diffusion.schedulers.compatible import create_scheduler
from sashimi_diffusion.training.checkpoints import checkpoint_name
from sashimi_diffusion.training.diffusion.batches import BatchSource
from sashimi_diffusion.training.diffusion.config import SamplingConfig


def save_samples(
    run: Path,
    step: int,
    model: Any,
    scheduler: Any,
    config: SamplingConfig,
    recordings: BatchSource,
    guidance_scale: float,
) -> str:
    """Draw samples into a folder such as ``run``/samples/step-000100: wav files and contact_sheet.png.

    Sample i starts from the same noise at every step. A vocoder resynthesizes ``recordings``.

    Args:
        run: the run folder.
        step: optimizer steps done.
        model: the denoiser.
        scheduler: the scheduler of the run.
        config: settings of the samples.
        recordings: source of the mel spectrograms for a vocoder.
        guidance_scale: scale of classifier-free guidance.

    Returns:
        str: the defects of the samples (clipped to [-1, 1], or silent because not finite); empty if there are none.
    """
    pipeline: Any = SashimiPipeline(model=model, scheduler=_sampler(config, scheduler))
    pipeline.cuda_graph = False  # its memory would come on top of that of the recorded training step
    pipeline.set_progress_bar_config(desc="samples", leave=False, disable=not sys.stderr.isatty())
    labels, speakers = labels_in_turn(model.config, config.num_samples)
    audios = pipeline(
        batch_size=config.num_samples,
        num_inference_steps=config.steps,
        generator=[torch.Generator().manual_seed(config.seed + index) for index in range(config.num_samples)],
        class_labels=labels,
        guidance_scale=guidance_scale,
        mel=None if recordings.mel is None else _mels(recordings, config.num_samples),
        speaker_labels=speakers,
    ).audios  # (B, C, L)
    finite = np.isfinite(audios).all(axis=(1, 2))
    audios = np.where(finite[:, None, None], audios, 0)
    titles = _titles(model, {"class": labels, "speaker": speakers}, config.num_samples)
    with folder_written_beside(run / "samples" / checkpoint_name(step)) as folder:
        clipped = [
            write_audio(folder / f"{index:02d}-{title}.wav", audio, model.config.sample_rate)
            for index, (title, audio) in enumerate(zip(titles, audios, strict=True))
        ]
        sheet = contact_sheet(list(audios.mean(axis=1)), model.config.sample_rate, titles=titles)
        sheet.save(folder / "contact_sheet.png")
    defects = [f"{sum(clipped) / len(clipped):.2%} of the samples' values were clipped"] if any(clipped) else []
    if not finite.all():
        defects.append(f"{int((~finite).sum())} of {len(finite)} samples were not finite and are silent instead")
    return "; ".join(defects)


def check_sampling(config: SamplingConfig, model: Any, scheduler: Any) -> None:
    """Check before training that the scheduler of the samples can be created and can have this number of steps.

    Raises:
        UserError: it cannot.
    """
    pipeline: Any = SashimiPipeline(model=model, scheduler=_sampler(config, scheduler))
    try:
        pipeline.set_timesteps(config.steps)
    except UserError as error:
        raise UserError(f"sampling.steps={config.steps} does not fit sampling.scheduler: {error}") from error


def _sampler(config: SamplingConfig, scheduler: Any) -> SchedulerMixin:
    """Return the scheduler that draws the samples."""
    return scheduler if config.scheduler is None else create_scheduler(config.scheduler, scheduler.config)


def _mels(recordings: BatchSource, count: int) -> torch.Tensor | None:
    """Return the mel spectrograms of the first ``count`` recordings, again from the first one if there are fewer."""
    return recordings.validation_batch(index % len(recordings.dataset) for index in range(count)).mel


def _titles(model: Any, labels: dict[str, list[int] | None], count: int) -> list[str]:
    """Return the labels of each sample as a part of a file name, for example "7-theo"."""
    names: list[list[str]] = [[] for _ in range(count)]
    for kind, indices in labels.items():
        known = known_labels(model.config, kind)
        if indices is not None and known is not None:
            for name, index in zip(names, indices, strict=True):
                name.append(name_of("".join(c if c.isalnum() else "-" for c in known.title(index))))
    return ["-".join(name) or "sample" for name in names]
