"""Saved networks: their files are checked before anything is allocated, and every error names a file."""

import contextlib
import inspect
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import ModelMixin
from safetensors import SafetensorError, safe_open

from sashimi_diffusion.arguments import short_form
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.models.base import meta_state
from sashimi_diffusion.paths import entries, read_json, reason, require_file
from sashimi_diffusion.suggestions import did_you_mean
from sashimi_diffusion.terminal import listed, one_line, printable, shortened

CONFIG = "config.json"
"""The file with the arguments of a network."""
A_FILE = "a file of a saved model or pipeline"
"""What a missing file should be, for error messages."""

_WEIGHTS, _SHARDS = "diffusion_pytorch_model.safetensors", ".safetensors.index."
_SHARD = re.compile(r"-\d{5}-of-\d{5}")
_FLOATS = ("F64", "F32", "F16", "BF16")
_MAX_JSON = 16 << 20
Model = TypeVar("Model", bound=ModelMixin)


def load_network(
    network: type[Model],
    folder: Path,
    dtype: torch.dtype | None,
    required: Collection[str] = (),
    variant: str | None = None,
) -> Model:
    """Load a network of diffusers in evaluation mode.

    Args:
        network: class of the network; its constructor checks its arguments.
        folder: the folder with ``config.json`` and the weights.
        dtype: dtype of the weights; None is float32.
        required: keys that the config must have.
        variant: part of the names of the files with the weights, for example "fp16"; None is that without one.

    Raises:
        UserError: a file is missing, unreadable, damaged or does not fit the others; the message names it.
    """
    path = folder / CONFIG
    config = read_config(path, network, required)
    config = {key: value for key, value in config.items() if not key.startswith("_")}
    names = inspect.signature(network.__init__).parameters
    for key in config.keys() - names.keys():
        raise UserError(f"{printable(path)} has the unknown key {short_form(key)}{did_you_mean(key, names)}")
    stored = {name: part for file in weight_files(folder, variant) for name, part in _stored_tensors(file).items()}
    with loading(path):
        needed = meta_state(network, config)
    # diffusers only warns, and initializes the parameters of these names randomly.
    problems = {
        "missing": needed.keys() - stored.keys(),
        "unexpected": stored.keys() - needed.keys(),
        "mismatched": {name for name in stored.keys() & needed.keys() if not _fits(stored[name], needed[name])},
    }
    for problem, keys in problems.items():
        if keys:
            raise UserError(
                f"{printable(folder / _WEIGHTS)} does not fit {printable(path)}: {len(keys)} {problem} keys "
                f"({listed([shortened(key) for key in sorted(keys)], 3)})"
            )
    with loading(folder):
        return network.from_pretrained(folder, torch_dtype=dtype, use_safetensors=True, variant=variant).eval()


def weight_files(folder: Path, variant: str | None = None) -> list[Path]:
    """Return the files with the weights of a saved network.

    Args:
        folder: the folder with the weights.
        variant: see :func:`load_network`.

    Raises:
        UserError: there are none, or one of them or of their indexes is no regular file. If there are other variants,
            the message lists them.
    """
    found = entries(folder)
    weights = [path for path in found if path.suffix == ".safetensors"]
    files = [path for path in weights if _variant(path) == variant]
    if weights and not files:
        raise UserError(_missing_variant(folder, variant, {_variant(path) for path in weights}))
    for path in [*(files or [folder / _WEIGHTS]), *(path for path in found if _SHARDS in path.name)]:
        require_file(path, A_FILE)
    return files


def _variant(path: Path) -> str | None:
    """Return the variant in the name of a file of weights, as in "diffusion_pytorch_model.fp16.safetensors"."""
    return _SHARD.sub("", path.stem).partition(".")[2] or None


def _missing_variant(folder: Path, variant: str | None, others: set[str | None]) -> str:
    names = listed([repr(name) for name in sorted(name for name in others if name is not None)], 10)
    if variant is None:
        return f"{printable(folder)} has only weights of a variant ({names}): load it with variant=, or save it without"
    known = ["weights without a variant"] * (None in others) + [f"the variants {names}"] * (others != {None})
    return f"{printable(folder)} has no variant {short_form(variant)}: there are {' and '.join(known)}"


def read_config(path: Path, component: type, required: Collection[str] = ()) -> dict[str, Any]:
    """Return the config of a saved component.

    Args:
        path: the JSON file.
        component: class of the component.
        required: keys that the config must have.

    Raises:
        UserError: an error of :func:`read_object`, the config belongs to another class, or a key is missing.
    """
    config = read_object(path)
    name = config.get("_class_name", component.__name__)
    if name != component.__name__:
        raise UserError(f"{printable(path)}: _class_name is {short_form(name)}, expected {component.__name__}")
    for key in required:
        if key not in config:
            raise UserError(f"{printable(path)} has no {key}: get a fresh copy of it")
    return config


def read_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        UserError: the file is missing, is no regular file, cannot be read, is no JSON, or contains no object.
    """
    content = read_json(path, A_FILE, limit=_MAX_JSON)
    if not isinstance(content, dict):
        raise UserError(f"{printable(path)} does not hold a JSON object: get a fresh copy of it")
    return content


@contextlib.contextmanager
def loading(path: Path) -> Iterator[None]:
    """Turn every error that a file causes into a UserError of one line that names ``path``."""
    try:
        yield
    except Exception as error:  # foreign code reads the files: what a wrong value in them raises is not known
        raise UserError(f"{printable(path)} cannot be loaded ({one_line(error)})") from error


def _stored_tensors(path: Path) -> dict[str, tuple[str, list[int]]]:
    """Return types and shapes of the tensors in a file of weights.

    Raises:
        UserError: the file cannot be read or is damaged.
    """
    try:
        # For a file that may not be read, safe_open says that it does not exist.
        with path.open("rb"), safe_open(path, framework="pt") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  # the file is no dict
            return {name: (part.get_dtype(), part.get_shape()) for name, part in parts.items()}
    except OSError as error:
        raise UserError(f"cannot read {printable(path)}: {reason(error)}") from error
    except SafetensorError as error:
        raise UserError(
            f"{printable(path)} is corrupt or cut short ({one_line(error)}): get a fresh copy of it"
        ) from error


def _fits(stored: tuple[str, list[int]], needed: torch.Tensor) -> bool:
    """Return whether a stored tensor has the shape of ``needed``, and floating-point numbers if it has."""
    dtype, shape = stored
    return list(needed.shape) == shape and (dtype in _FLOATS) == needed.is_floating_point()
