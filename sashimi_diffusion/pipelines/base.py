"""The base class of the pipelines: saved folders, lengths in seconds, and random generators per waveform."""

import math
import os
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.pipelines.remote_code import write_remote_code


class AudioPipeline(DiffusionPipeline):
    """Base class of the pipelines that generate raw audio."""

    model: Any
    config: Any  # diffusers' FrozenDict, whose keys are also attributes

    def save_pretrained(self, save_directory: str | os.PathLike, *arguments: Any, **options: Any) -> None:
        """Write a folder that this class can load, and plain diffusers with ``trust_remote_code=True``.

        Args:
            save_directory: the folder; it is created if it does not exist.
            *arguments, **options: the other arguments of diffusers (``push_to_hub``, ``max_shard_size``, ...).

        Raises:
            UserError: ``safe_serialization`` is False; weights are never pickled.
        """
        if not (arguments[0] if arguments else options.get("safe_serialization", True)):
            raise UserError("pipelines are saved as safetensors only: leave out safe_serialization=False")
        super().save_pretrained(str(save_directory), *arguments, **options)

    def save_config(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **options: Any) -> None:
        """Write ``model_index.json`` and the remote-code files, before diffusers uploads the folder."""
        super().save_config(save_directory, push_to_hub=push_to_hub, **options)
        write_remote_code(Path(save_directory), type(self), self.components)

    def seconds_to_samples(self, seconds: float) -> int:
        """Return the number of samples in ``seconds`` of audio.

        Raises:
            UserError: less than one sample, or not finite.
        """
        rate = self.model.config.sample_rate
        if not (math.isfinite(seconds) and round(seconds * rate) >= 1):
            raise UserError(f"cannot generate {seconds:g} seconds of audio: ask for a number above 0")
        return round(seconds * rate)


def check_request(batch_size: int, output_type: str = "np") -> None:
    """Raise UserError if a call asks for no waveforms or for an unknown output type."""
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}, expected at least 1")
    if output_type not in ("np", "pt"):
        raise UserError(f"output_type is {output_type!r}, expected 'np' or 'pt'")


def sample_generators(generator: torch.Generator | list[torch.Generator] | None, count: int) -> list[torch.Generator]:
    """Return one generator per waveform: those of a list, or new ones on the CPU, seeded by :func:`sample_seeds`.

    Raises:
        UserError: the list does not have ``count`` generators.
    """
    if isinstance(generator, list):
        if len(generator) != count:
            raise UserError(
                f"got {len(generator)} generators for a batch of {count}: give one for each, or a single one"
            )
        return generator
    return [torch.Generator().manual_seed(seed) for seed in sample_seeds(generator, count)]


def sample_seeds(generator: torch.Generator | None, count: int) -> list[int]:
    """Draw ``count`` seeds one after the other, so that the first n do not depend on ``count``.

    Args:
        generator: source of the seeds; None is torch's global generator.
        count: number of seeds.
    """
    device = torch.device("cpu") if generator is None else generator.device
    return [
        int(torch.randint(2**63 - 1, (1,), generator=generator, device=device, dtype=torch.int64)) for _ in range(count)
    ]
