"""Pipeline folders: find them by name, check their files, and load their components."""

import hashlib
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import diffusers
import torch
from diffusers import ModelMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open

from sashimi_diffusion import models, schedulers
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.paths import is_folder, status
from sashimi_diffusion.terminal import printable

BUNDLED = Path(__file__).resolve().parent.parent / "pretrained"
"""Folder of the pipelines that are part of the package."""

_INDEX, _MODEL, _SCHEDULER = "model_index.json", "model/config.json", "scheduler/scheduler_config.json"
_WEIGHTS = "model/diffusion_pytorch_model.safetensors"
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
    if is_folder(name):
        return Path(name)
    bundled = {path.parent.name: path.parent for path in sorted(BUNDLED.glob(f"*/{_INDEX}"))}
    if str(name) in bundled:
        return bundled[str(name)]
    owner, slash, repository = str(name).partition("/")
    if not (owner.strip("~.") and slash and repository) or "/" in repository:
        raise UserError(
            f"no pipeline {str(name)!r}: expected a folder, a bundled pipeline ({', '.join(bundled) or 'none here'}), "
            "or a hub id like owner/name"
        )
    try:
        return Path(snapshot_download(str(name), allow_patterns=[_INDEX, "*/*.json", "*/*.safetensors"], **hub))
    except (OSError, ValueError) as error:
        raise UserError(
            f"there is no folder {str(name)!r}, and the hub did not return this pipeline ({_one_line(error)})"
        ) from error


def load_components(
    folder: Path, model: ModelMixin | None, scheduler: SchedulerMixin | None, dtype: torch.dtype | None
) -> tuple[ModelMixin, SchedulerMixin]:
    """Load the model, in evaluation mode, and the scheduler of a pipeline folder.

    Args:
        folder: the pipeline folder.
        model: replaces the stored model; None loads it.
        scheduler: replaces the stored scheduler; None loads it.
        dtype: dtype of the weights; None is float32.

    Raises:
        UserError: a file is missing, corrupt or does not fit the others; the message names it.
    """
    if scheduler is None:
        scheduler = _load_scheduler(folder)
    if model is None:
        model = load_model(folder, ModelMixin, dtype)
    return model, scheduler


def _load_scheduler(folder: Path) -> SchedulerMixin:
    scheduler_class = _component_class(
        folder, _read_json(folder / _INDEX), "scheduler", SchedulerMixin, (schedulers, diffusers)
    )
    _read_json(folder / _SCHEDULER)
    return _load(folder / _SCHEDULER, lambda: scheduler_class.from_pretrained(folder, subfolder="scheduler"))


def stored_guidance_scale(folder: Path) -> float:
    """Return the default guidance scale of a pipeline folder; 1 (no guidance) if it has none.

    Raises:
        UserError: the stored scale is not a finite number.
    """
    scale = _read_json(folder / _INDEX).get("guidance_scale", 1.0)
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not math.isfinite(scale):
        raise UserError(f"{folder / _INDEX}: guidance_scale is {scale!r}, expected a number")
    return float(scale)


def load_model(folder: Path, base: type[Model], dtype: torch.dtype | None) -> Model:
    """Load the model of a pipeline folder in evaluation mode.

    Args:
        folder: the pipeline folder.
        base: class of the model, or a base class of it.
        dtype: dtype of the weights; None is float32.

    Raises:
        UserError: the model is not a ``base``, or an error of :func:`load_components`.
    """
    model_class = _component_class(folder, _read_json(folder / _INDEX), "model", base, (models,))
    _read_json(folder / _MODEL)
    for path in _weight_files(folder):
        try:
            safe_open(path, framework="pt").__exit__(None, None, None)
        except OSError as error:
            raise UserError(f"cannot read {printable(path)}: {_one_line(error)}") from error
        except SafetensorError as error:
            raise UserError(f"{path} is corrupt or cut short ({_one_line(error)}): get a fresh copy of it") from error
    options = {"torch_dtype": dtype, "use_safetensors": True, "output_loading_info": True}
    model, report = _load(folder / "model", lambda: model_class.from_pretrained(folder, subfolder="model", **options))
    # diffusers only warns and initializes these parameters randomly.
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report[problem]:
            names = ", ".join(sorted(str(key) for key in report[problem])[:3])
            raise UserError(
                f"{folder / _WEIGHTS} does not fit {folder / _MODEL}: {len(report[problem])} "
                f"{problem.replace('_', ' ')} ({names}{', ...' if len(report[problem]) > 3 else ''})"
            )
    return model.eval()


def is_autoregressive(folder: Path) -> bool:
    """Return whether the pipeline in ``folder`` is autoregressive: it has no scheduler.

    Raises:
        UserError: the folder is not a pipeline folder.
    """
    inner = folder / "pipeline"
    if status(folder / _INDEX) is None and status(inner / _INDEX) is not None:
        raise UserError(f"{printable(folder)} is not a pipeline, but {printable(inner)} is one: name that folder")
    return "scheduler" not in _read_json(folder / _INDEX)


def require_autoregressive(folder: Path, expected: bool) -> None:
    """Check whether the pipeline in ``folder`` is autoregressive.

    Raises:
        UserError: it is of the other kind; the message names the class that loads it.
    """
    found = is_autoregressive(folder)
    if found != expected and "model" in _read_json(folder / _INDEX):
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
    for path in [folder / _INDEX, folder / _MODEL, *scheduler, *_weight_files(folder)]:
        digest.update(f"{path.relative_to(folder).as_posix()} {path.stat().st_size}\n".encode())
        with path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    return digest.hexdigest()


def _weight_files(folder: Path) -> list[Path]:
    files = sorted((folder / "model").glob("*.safetensors"))
    if not files:
        raise UserError(f"{folder / _WEIGHTS} is missing: the pipeline folder is not complete")
    return files


def _component_class(
    folder: Path, index: dict[str, Any], name: str, base: type[Component], modules: tuple[ModuleType, ...]
) -> type[Component]:
    """Return the class of a component, a subclass of ``base`` that is defined in one of ``modules``."""
    try:
        class_name = index[name][1]
    except (KeyError, IndexError, TypeError) as error:
        raise UserError(f"{folder / _INDEX} has no {name}: this is not a pipeline of sashimi-diffusion") from error
    for module in modules:
        found = getattr(module, str(class_name), None)
        if isinstance(found, type) and issubclass(found, base):
            return found
    raise UserError(
        f"{folder / _INDEX}: the {name} is of the class {class_name}, which this pipeline does not know (it takes a "
        f"{base.__name__} of this package): load it yourself and give it as {name}=, or load it with another pipeline"
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: the pipeline folder is not complete") from error
    except OSError as error:
        raise UserError(f"cannot read {printable(path)}: {_one_line(error)}") from error
    except ValueError as error:
        raise UserError(f"{path} cannot be read as JSON ({_one_line(error)}): get a fresh copy of it") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} does not hold a JSON object: get a fresh copy of it")
    return content


def _load(path: Path, load: Callable[[], Any]) -> Any:
    """Run ``load``; turn the errors of a wrong file into a UserError that names ``path``."""
    try:
        return load()
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"{path} cannot be loaded ({_one_line(error)})") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
