"""The base class of the pipelines: saved folders, lengths in seconds, and random generators per waveform."""

import math
import os
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.files import give_usual_rights
from sashimi_diffusion.paths import entries, is_file
from sashimi_diffusion.pipelines.hub import CARD
from sashimi_diffusion.pipelines.remote_code import write_remote_code
from sashimi_diffusion.terminal import printable

_MAX_SAMPLES = 2**62
"""Limit of the length of a waveform: torch counts elements in 64 bits."""


class AudioPipeline(DiffusionPipeline):
    """Base class of the pipelines of this package."""

    model: Any
    config: Any  # diffusers' FrozenDict, whose keys are also attributes
    _card: bytes | None = None  # the card of the folder that is saved, if it had one

    def save_pretrained(self, save_directory: str | os.PathLike, *arguments: Any, **options: Any) -> None:
        """Write a folder that this class can load, and plain diffusers with ``trust_remote_code=True``.

        A model card, README.md, that is in the folder stays, also with ``push_to_hub``.

        Args:
            save_directory: the folder; it is created if it does not exist.
            *arguments, **options: the other arguments of diffusers (``push_to_hub``, ``max_shard_size``, ...).

        Raises:
            UserError: ``safe_serialization`` is False; weights are never pickled.
        """
        if not (arguments[0] if arguments else options.get("safe_serialization", True)):
            raise UserError("pipelines are saved as safetensors only: leave out safe_serialization=False")
        card = Path(save_directory) / CARD
        self._card = card.read_bytes() if is_file(card) else None
        super().save_pretrained(str(save_directory), *arguments, **options)
        for name in self.components:
            if (Path(save_directory) / name).is_dir():
                give_usual_rights(Path(save_directory) / name)

    def _upload_folder(self, working_dir: str | os.PathLike, *arguments: Any, **options: Any) -> Any:
        """Upload a folder that was saved, with its own card instead of the empty one that diffusers has written."""
        if self._card is not None:
            (Path(working_dir) / CARD).write_bytes(self._card)
        return super()._upload_folder(working_dir, *arguments, **options)

    def save_config(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **options: Any) -> None:
        """Write ``model_index.json`` and the files of :mod:`sashimi_diffusion.pipelines.remote_code`.

        ``save_pretrained`` of diffusers calls it before it uploads the folder.
        """
        super().save_config(save_directory, push_to_hub=push_to_hub, **options)
        write_remote_code(Path(save_directory), type(self), self.components)

    def seconds_to_samples(self, seconds: float) -> int:
        """Return the number of samples in ``seconds`` of audio.

        Raises:
            UserError: ``seconds`` is less than one sample, not finite, or beyond what a computer can count.
        """
        samples = seconds * self.model.config.sample_rate
        if not (math.isfinite(samples) and 1 <= round(samples) <= _MAX_SAMPLES):
            limit = _MAX_SAMPLES / self.model.config.sample_rate
            raise UserError(
                f"cannot generate {seconds:g} seconds of audio: ask for a number above 0, up to {limit:.1g}"
            )
        return round(samples)


def require_finite_weights(model: Any, folder: Path) -> None:
    """Check the weights of a model that was loaded from a pipeline folder.

    Raises:
        UserError: a weight is NaN or infinite; the message names the file.
    """
    for name, weights in model.state_dict().items():
        if not torch.isfinite(weights).all():
            files = [path for path in entries(folder / "model") if path.suffix == ".safetensors"]
            path = files[0] if len(files) == 1 else folder / "model"
            raise UserError(
                f"{printable(path)}: the weights {printable(name)} are not finite (NaN or infinity), {weights.dtype}: "
                "the training diverged or the file is damaged; use an earlier checkpoint or a fresh copy"
            )


def check_request(batch_size: int, output_type: str = "np") -> None:
    """Raise UserError if ``batch_size`` is less than 1 or ``output_type`` is unknown."""
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
    """Return ``count`` random seeds; the first n do not depend on ``count``.

    Args:
        generator: source of the seeds; None is torch's global generator.
        count: number of seeds.
    """
    device = torch.device("cpu") if generator is None else generator.device
    return [
        int(torch.randint(2**63 - 1, (1,), generator=generator, device=device, dtype=torch.int64)) for _ in range(count)
    ]
