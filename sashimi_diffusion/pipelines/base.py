"""The base class of the pipelines: components, saved folders, callbacks, lengths in seconds, batches and generators."""

import contextlib
import inspect
import math
import numbers
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from sashimi_diffusion.arguments import short_form
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.files import give_usual_rights, writing
from sashimi_diffusion.paths import entries, is_file, is_folder, kind, status
from sashimi_diffusion.pipelines.hub import CARD
from sashimi_diffusion.pipelines.options import check_options, weights_dtype
from sashimi_diffusion.pipelines.remote_code import write_remote_code
from sashimi_diffusion.suggestions import did_you_mean
from sashimi_diffusion.terminal import printable

Pipeline = TypeVar("Pipeline", bound="AudioPipeline")

_PUSHED = ("use_flashpack", "repo_id", "commit_message", "private", "create_pr", "token")
"""The other arguments of ``save_pretrained``."""
_VARIANT = re.compile(r"\w[\w.-]*", re.ASCII)
_MAX_SAMPLES = 2**62
"""Limit of the length of a waveform: torch counts elements in 64 bits."""


class AudioPipeline(DiffusionPipeline):
    """Base class of the pipelines of this package.

    A call counts its steps in ``_num_timesteps``, and ends after a step if ``_interrupt`` is set, as in diffusers.
    """

    model: Any
    config: Any  # diffusers' FrozenDict, whose keys are also attributes
    model_cpu_offload_seq: Any = "model"
    _callback_tensor_inputs: ClassVar[list[str]] = []
    _card: bytes | None = None  # the card of the folder that is saved, if it had one

    def __init__(self) -> None:
        super().__init__()
        self._num_timesteps, self._interrupt = 0, False

    @property
    def num_timesteps(self) -> int:
        """Number of steps of the current or last call; 0 before the first one."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether the current call ends after the present step."""
        return self._interrupt

    @classmethod
    def from_pipe(cls: type[Pipeline], pipeline: DiffusionPipeline, **options: Any) -> Pipeline:
        """Create a pipeline with the components and the config of another one, without copying weights.

        Args:
            pipeline: a pipeline with the components that this class needs.
            **options: components and config values that replace those of ``pipeline``, and ``torch_dtype`` or ``dtype``
                to convert the weights, which both pipelines share. By default, the weights keep their dtype.

        Raises:
            UserError: a component is missing, or an argument is unknown.
        """
        needed = list(inspect.signature(cls.__init__).parameters)[1:]
        check_options(f"{cls.__name__}.from_pipe", options, [*needed, "torch_dtype", "dtype"])
        if not isinstance(pipeline, DiffusionPipeline):
            raise UserError(f"{cls.__name__}.from_pipe got {short_form(pipeline)}: expected a pipeline")
        dtype = weights_dtype(options.pop("torch_dtype", None), options.pop("dtype", None))
        own = {**pipeline.config, **pipeline.components, **options}
        missing = [name for name in cls._get_signature_keys(cls)[0] if own.get(name) is None]
        if missing:
            raise UserError(
                f"{cls.__name__} needs {' and '.join(sorted(missing))}, which this {type(pipeline).__name__} does not "
                f"have (it has {', '.join(pipeline.components)}): give it as an argument"
            )
        created = cls(**{name: own[name] for name in needed if name in own})
        if "_name_or_path" in own:
            created.register_to_config(_name_or_path=own["_name_or_path"])
        return created if dtype is None else created.to(dtype)

    def enable_sequential_cpu_offload(self, *arguments: Any, **options: Any) -> None:
        """Raise UserError: the layers use parameters of each other, which this method would leave without values."""
        raise UserError("the layers of this model cannot be loaded one by one: use enable_model_cpu_offload")

    def save_pretrained(self, save_directory: str | os.PathLike, *arguments: Any, **options: Any) -> None:
        """Write a folder that this class can load, and plain diffusers with ``trust_remote_code=True``.

        A model card, README.md, that is in the folder stays, also with ``push_to_hub``.

        Args:
            save_directory: the folder; it is created if it does not exist.
            *arguments, **options: the other arguments of diffusers (``push_to_hub``, ``max_shard_size``, ...).

        Raises:
            UserError: ``safe_serialization`` is False, because weights are never pickled; an argument is unknown; the
                folder is none or cannot be written; or the variant is no part of a file name.
        """
        names = ("safe_serialization", "variant", "max_shard_size", "push_to_hub")
        options |= dict(zip(names, arguments, strict=False))
        check_options(f"{type(self).__name__}.save_pretrained", options, (*names, *_PUSHED))
        if not options.get("safe_serialization", True):
            raise UserError("pipelines are saved as safetensors only: leave out safe_serialization=False")
        variant = options.get("variant")
        if variant is not None and not (isinstance(variant, str) and _VARIANT.fullmatch(variant)):
            raise UserError(f"variant is {short_form(variant)}: expected letters and digits, such as fp16")
        folder = _folder_to_save(save_directory)
        card = folder / CARD
        self._card = card.read_bytes() if is_file(card) else None
        pushes = options.get("push_to_hub")  # errors of the network are OSErrors, too
        with contextlib.nullcontext() if pushes else writing(printable(folder)):
            super().save_pretrained(str(save_directory), **options)
            for name in super().components:
                if (folder / name).is_dir():
                    give_usual_rights(folder / name)

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
        write_remote_code(Path(save_directory), type(self), super().components)

    def callback_inputs(self, callback: Any, names: Sequence[str]) -> Sequence[str]:
        """Return the names of the tensors that a callback receives.

        Args:
            callback: a function, or a callback of diffusers, which names its tensors itself.
            names: the argument ``callback_on_step_end_tensor_inputs``.

        Raises:
            UserError: the callback is no function, or a name is unknown.
        """
        if callback is not None and not callable(callback):
            raise UserError(f"callback_on_step_end is {short_form(callback)}: expected a function")
        if isinstance(callback, PipelineCallback | MultiPipelineCallbacks):
            names = callback.tensor_inputs
        if isinstance(names, str) or not isinstance(names, Sequence):
            raise UserError(
                f"callback_on_step_end_tensor_inputs is {short_form(names)}: expected a list of some of "
                f"{', '.join(self._callback_tensor_inputs)}"
            )
        for name in names:
            if name not in self._callback_tensor_inputs:
                raise UserError(
                    f"callback_on_step_end_tensor_inputs has {short_form(name)}"
                    f"{did_you_mean(str(name), self._callback_tensor_inputs)}: expected some of "
                    f"{', '.join(self._callback_tensor_inputs)}"
                )
        return names

    def seconds_to_samples(self, seconds: float) -> int:
        """Return the number of samples in ``seconds`` of audio.

        Raises:
            UserError: ``seconds`` is less than one sample, not finite, or beyond what a computer can count.
        """
        seconds = seconds.tolist() if hasattr(seconds, "tolist") else seconds  # numbers of numpy and of torch
        if isinstance(seconds, bool) or not isinstance(seconds, numbers.Real):
            raise UserError(f"audio_length_in_s is {short_form(seconds)}: expected a number of seconds")
        samples = seconds * self.model.config.sample_rate
        if not (math.isfinite(samples) and 1 <= round(samples) <= _MAX_SAMPLES):
            limit = _MAX_SAMPLES / self.model.config.sample_rate
            raise UserError(
                f"cannot generate {seconds:g} seconds of audio: ask for a number above 0, up to {limit:.1g}"
            )
        return round(samples)


def _folder_to_save(given: Any) -> Path:
    """Return the path of a folder to save to.

    Raises:
        UserError: it is no path, or the path of something that is no folder.
    """
    if not isinstance(given, str | os.PathLike) or not os.fspath(given):
        raise UserError(f"save_directory is {short_form(given)}: expected the path of a folder")
    folder = Path(given)
    found = status(folder)
    if found is not None and not is_folder(folder):
        raise UserError(f"save_directory {printable(folder)} is {kind(found)}: expected a folder")
    return folder


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


def check_output_type(output_type: str) -> None:
    """Raise UserError if ``output_type`` is unknown."""
    if output_type not in ("np", "pt"):
        raise UserError(f"output_type is {short_form(output_type)}, expected 'np' or 'pt'")


def batch_size_of(batch_size: Any, counts: Mapping[str, int | None], advice: str = "") -> int:
    """Return the size of a batch.

    Args:
        batch_size: the size that was asked for, or None.
        counts: for each argument with a row for each element of the batch, its name and its number of rows; None if it
            was not given.
        advice: end of the message if ``batch_size`` is no number.

    Raises:
        UserError: ``batch_size`` is no whole number of at least 1, or the numbers differ.
    """
    if batch_size is not None:
        require_count("batch_size", batch_size, advice)
    sizes = {"batch_size": batch_size, **counts}
    given = {name: size for name, size in sizes.items() if size is not None}
    (first, size), *others = given.items() or [("batch_size", 1)]
    for name, other in others:
        if other != size:
            verb = "is" if first == "batch_size" else "has"
            raise UserError(f"{first} {verb} {size}, {name} has {other}: expected the same number of both")
    if size < 1:
        raise UserError(f"{first} is empty: expected at least one")
    return int(size)


def require_count(name: str, value: Any, advice: str = "") -> int:
    """Return ``value``; raise UserError if it is no whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise UserError(f"{name} is {short_form(value)}, expected a whole number of at least 1{advice}")
    if value < 1:
        raise UserError(f"{name} is {short_form(value)}, expected at least 1")
    return int(value)


def sample_generators(generator: torch.Generator | list[torch.Generator] | None, count: int) -> list[torch.Generator]:
    """Return one generator per waveform: those of a list, or new ones on the CPU, seeded by :func:`sample_seeds`.

    Raises:
        UserError: it is something else, or the list does not have ``count`` generators.
    """
    for one in generator if isinstance(generator, list) else [generator]:
        if not isinstance(one, torch.Generator) and (one is not None or isinstance(generator, list)):
            raise UserError(
                f"generator is {short_form(generator)}: expected a torch.Generator, or a list of one per waveform"
            )
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
