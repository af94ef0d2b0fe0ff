"""Pipeline folders: find them by name, check their files, and load their components."""

import hashlib
import inspect
import os
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import diffusers
import torch
from diffusers import ModelMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from huggingface_hub import snapshot_download

from sashimi_diffusion import models, schedulers
from sashimi_diffusion.arguments import check_arguments, short_form
from sashimi_diffusion.bundled import BUNDLED, bundled_folders, local_folder
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.generation.sampling import Sampling
from sashimi_diffusion.models.stored import (
    A_FILE,
    CONFIG,
    load_network,
    loading,
    read_config,
    read_object,
    weight_files,
)
from sashimi_diffusion.paths import kind, reason, require_file, status
from sashimi_diffusion.pipelines.prediction import checked_scale
from sashimi_diffusion.schedulers.compatible import CONTINUOUS_RANGES, SCHEDULE_KEYS
from sashimi_diffusion.schedulers.diffwave import RANGES, DiffWaveScheduler
from sashimi_diffusion.terminal import one_line, printable

_INDEX, _SCHEDULER = "model_index.json", "scheduler/scheduler_config.json"

Model = TypeVar("Model", bound=ModelMixin)
Component = TypeVar("Component")


def resolve_pipeline(name: str | os.PathLike[str], **hub: Any) -> Path:
    """Return the folder of a pipeline.

    Args:
        name: a folder, the name of a bundled pipeline, or a hub id ``owner/name``, which is downloaded to the cache of
            the hub.
        **hub: options of ``huggingface_hub.snapshot_download``.

    Raises:
        UserError: the pipeline does not exist.
    """
    if not isinstance(name, str | os.PathLike) or not isinstance(os.fspath(name), str):
        raise UserError(
            f"no pipeline {short_form(name)}: expected a folder, a bundled pipeline, or a hub id like owner/name"
        )
    name = os.fspath(name)
    folder = local_folder(name, BUNDLED)
    if folder is not None:
        return folder
    found = status(name)
    if found is not None:
        raise UserError(f"{printable(name)} is {kind(found)}: expected the folder of a pipeline")
    owner, slash, repository = str(name).partition("/")
    if not (owner.strip("~.") and slash and repository) or "/" in repository:
        raise UserError(
            f"no pipeline {short_form(str(name))}: expected a folder, a bundled pipeline "
            f"({', '.join(bundled_folders(BUNDLED)) or 'none here'}), or a hub id like owner/name"
        )
    try:
        return Path(snapshot_download(str(name), allow_patterns=[_INDEX, "*/*.json", "*/*.safetensors"], **hub))
    except (OSError, ValueError) as error:
        raise UserError(
            f"there is no folder {short_form(str(name))}, and the hub did not return this pipeline ({one_line(error)})"
        ) from error


def load_components(
    folder: Path,
    model: ModelMixin | None,
    scheduler: SchedulerMixin | None,
    dtype: torch.dtype | None,
    variant: str | None = None,
) -> tuple[ModelMixin, SchedulerMixin]:
    """Load the model, in evaluation mode, and the scheduler of a pipeline folder.

    Args:
        folder: the pipeline folder.
        model: replaces the stored model; None loads it.
        scheduler: replaces the stored scheduler; None loads it.
        dtype: dtype of the weights; None is float32.
        variant: variant of the weights, for example "fp16".

    Raises:
        UserError: a file is missing, corrupt or does not fit the others; the message names it.
    """
    if scheduler is None:
        scheduler = _load_scheduler(folder)
    if model is None:
        model = load_model(folder, ModelMixin, dtype, variant)
    return model, scheduler


def check_components(model: Any, scheduler: Any) -> None:
    """Raise UserError if a component is something else; None is a component that will be set later."""
    if model is not None and not (isinstance(model, torch.nn.Module) and _has(model, "config", "length_multiple")):
        raise UserError(f"model is {short_form(model)}: expected a denoiser such as SashimiDenoiser")
    if scheduler is not None and not _has(scheduler, "config", "set_timesteps", "step"):
        shown = type(scheduler).__name__ if isinstance(scheduler, SchedulerMixin) else short_form(scheduler)
        raise UserError(
            f"scheduler is {shown}: expected a scheduler such as sashimi_diffusion.schedulers.create_scheduler('ddim')"
        )


def _has(component: Any, *names: str) -> bool:
    return all(hasattr(component, name) for name in names)


def _load_scheduler(folder: Path) -> SchedulerMixin:
    scheduler_class: Any = _component_class(
        folder, read_object(folder / _INDEX), "scheduler", SchedulerMixin, (schedulers, diffusers)
    )
    path = folder / _SCHEDULER
    arguments = inspect.signature(scheduler_class.__init__).parameters
    config = read_config(path, scheduler_class, [key for key in SCHEDULE_KEYS if key in arguments])
    with loading(path):
        # The schedulers of diffusers have the same names for their schedules, but do not check them.
        if "beta_start" in arguments:
            check_arguments(DiffWaveScheduler.__init__, config, RANGES)
        else:
            known = {name: value for name, value in config.items() if name in CONTINUOUS_RANGES}
            check_arguments(scheduler_class.__init__, known, CONTINUOUS_RANGES)
        # Settings of create_few_step_scheduler and create_scheduler, of which diffusers would warn.
        own = [name for name in ("original_inference_steps", "sigma_min", "sigma_max") if name not in arguments]
        scheduler: Any = scheduler_class.from_config({name: config[name] for name in config if name not in own})
        scheduler.register_to_config(**{name: config[name] for name in own if name in config})
        return scheduler


def stored_guidance_scale(folder: Path) -> float:
    """Return the default guidance scale of a pipeline folder; 1 (no guidance) if it has none.

    Raises:
        UserError: an error of :func:`checked_scale`.
    """
    try:
        return checked_scale(read_object(folder / _INDEX).get("guidance_scale", 1.0))
    except UserError as error:
        raise UserError(f"{printable(folder / _INDEX)}: {error}") from error


def stored_sampling(folder: Path) -> Sampling:
    """Return how an autoregressive pipeline folder draws samples by default; from all tokens if it has no settings.

    Raises:
        UserError: an error of :class:`~sashimi_diffusion.generation.sampling.Sampling`.
    """
    index = read_object(folder / _INDEX)
    try:
        return Sampling(index.get("temperature", 1.0), None, index.get("top_p", 1.0))
    except UserError as error:
        raise UserError(f"{printable(folder / _INDEX)}: {error}") from error


def load_model(folder: Path, base: type[Model], dtype: torch.dtype | None, variant: str | None = None) -> Model:
    """Load the model of a pipeline folder in evaluation mode.

    Args:
        folder: the pipeline folder.
        base: class of the model, or a base class of it.
        dtype: dtype of the weights; None is float32.
        variant: variant of the weights, for example "fp16".

    Raises:
        UserError: the model is not a ``base``, or an error of :func:`load_components`.
    """
    model_class = _component_class(folder, read_object(folder / _INDEX), "model", base, (models,))
    return load_network(model_class, folder / "model", dtype, ("sample_rate", "sample_size"), variant)


def is_autoregressive(folder: Path) -> bool:
    """Return whether the pipeline in ``folder`` is autoregressive: it has no scheduler.

    Raises:
        UserError: the folder is not a pipeline folder.
    """
    inner = folder / "pipeline"
    if status(folder / _INDEX) is None and status(inner / _INDEX) is not None:
        raise UserError(f"{printable(folder)} is not a pipeline, but {printable(inner)} is one: name that folder")
    return "scheduler" not in read_object(folder / _INDEX)


def require_autoregressive(folder: Path, expected: bool) -> None:
    """Check whether the pipeline in ``folder`` is autoregressive.

    Raises:
        UserError: it is of the other kind; the message names the class that loads it.
    """
    found = is_autoregressive(folder)
    if found != expected and "model" in read_object(folder / _INDEX):
        kind, loader = (
            ("an autoregressive", "SashimiAutoregressivePipeline") if found else ("a diffusion", "SashimiPipeline")
        )
        raise UserError(f"{printable(folder)} is {kind} pipeline: load it with {loader}")


def hash_pipeline(folder: Path) -> str:
    """Return the SHA-256 of the configs and weights of a pipeline folder (names, sizes and bytes), hexadecimal.

    Raises:
        UserError: the folder is not a complete pipeline folder.
    """
    digest = hashlib.sha256()
    scheduler = [] if is_autoregressive(folder) else [folder / _SCHEDULER]
    for path in [folder / _INDEX, folder / "model" / CONFIG, *scheduler, *weight_files(folder / "model")]:
        require_file(path, A_FILE)
        try:
            digest.update(f"{path.relative_to(folder).as_posix()} {path.stat().st_size}\n".encode())
            with path.open("rb") as file:
                while block := file.read(2**20):
                    digest.update(block)
        except OSError as error:
            raise UserError(f"cannot read {printable(path)}: {reason(error)}") from error
    return digest.hexdigest()


def _component_class(
    folder: Path, index: dict[str, Any], name: str, base: type[Component], modules: tuple[ModuleType, ...]
) -> type[Component]:
    """Return the class of a component, a subclass of ``base`` that is defined in one of ``modules``."""
    path = printable(folder / _INDEX)
    try:
        class_name = index[name][1]
    except (KeyError, IndexError, TypeError) as error:
        raise UserError(f"{path} has no {name}: this is not a pipeline of sashimi-diffusion") from error
    for module in modules:
        found = getattr(module, class_name, None) if isinstance(class_name, str) else None
        if isinstance(found, type) and issubclass(found, base):
            return found
    raise UserError(
        f"{path}: the {name} is of the class {printable(class_name)[:100]}, which this pipeline does not know (it "
        f"takes a {base.__name__} of this package): load it yourself and give it as {name}=, or load it with another "
        "pipeline"
    )
