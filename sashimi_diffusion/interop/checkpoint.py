"""Official checkpoint files: safe reading, and a check that all tensors are used."""

import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sashimi_diffusion.errors import UserError

_MAX_LISTED = 12  # problems in an error message
LFS_POINTER = b"version https://git-lfs"


class RefusedPickle(UserError):
    """A pickle that contains more than tensors and could run code when loaded."""


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Return the state dict of the network in a file of the official code, on the CPU.

    Args:
        path: a pickle (.pkl, .pt, .ckpt) of a state dict, or of a dict with an entry model_state_dict or state_dict; or
            a .safetensors file.

    Raises:
        UserError: the file does not exist, cannot be read, could run code, or contains no state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no file {path}: expected an official checkpoint (.pkl, .pt or .safetensors)")
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise UserError(f"{path} is a Git LFS pointer, not the checkpoint itself: fetch it with `git lfs pull`")
    content = _load_safetensors(path) if path.suffix == ".safetensors" else _load_pickle(path)
    for entry in ("model_state_dict", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(entry), dict):
            content = content[entry]
    if not isinstance(content, dict) or not content or not all(map(_is_entry, content.items())):
        raise UserError(
            f"{path} contains no state dict: expected a dict of tensors by name, or an entry model_state_dict or "
            "state_dict with one"
        )
    return dict(content)


def _is_entry(item: tuple[object, object]) -> bool:
    return isinstance(item[0], str) and isinstance(item[1], Tensor)


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path} is not a readable checkpoint ({error})") from error


def _load_pickle(path: Path) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise RefusedPickle(f"{path} is refused: it contains more than tensors and could run code") from error
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} is not a readable checkpoint ({reason})") from error


class Checkpoint:
    """Tensors of an official state dict; :meth:`finish` reports missing, misshapen and unused ones.

    Args:
        tensors: the state dict.
    """

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = tensors
        self._taken: set[str] = set()
        self._problems: list[str] = []

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def shape(self, name: str, dims: int) -> tuple[int, ...]:
        """Return the shape of a tensor that determines the configuration.

        Raises:
            UserError: the tensor is missing, is empty, or does not have ``dims`` dimensions.
        """
        if name not in self.tensors:
            raise UserError(f"this is not an official checkpoint of a known layout: missing {name}")
        shape = tuple(self.tensors[name].shape)
        if len(shape) != dims or 0 in shape:
            raise UserError(f"the checkpoint does not fit any known network: misshapen {name}: {shape}")
        return shape

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Return the tensor called ``name``.

        If it is missing or has another shape, record the problem and return zeros.
        """
        if name not in self.tensors:
            self._problems.append(f"missing {name} {tuple(shape)}")
            return torch.zeros(shape)
        self._taken.add(name)
        tensor = self.tensors[name]
        if tensor.shape != torch.Size(shape):
            self._problems.append(f"misshapen {name}: {tuple(tensor.shape)}, expected {tuple(shape)}")
            return torch.zeros(shape)
        return tensor

    def copy(self, target: Tensor, name: str) -> None:
        """Copy the tensor called ``name`` into ``target``, which has the same shape."""
        with torch.no_grad():
            target.copy_(self.take(name, tuple(target.shape)))

    def finish(self) -> None:
        """Check that all requested tensors were found, and that all tensors of the state dict were requested.

        Raises:
            UserError: some were not; the message lists missing, misshapen and unexpected tensors.
        """
        extra = [f"unexpected {name}" for name in self.tensors if name not in self._taken]
        problems = self._problems + extra
        if problems:
            more = f"; and {len(problems) - _MAX_LISTED} more" if len(problems) > _MAX_LISTED else ""
            listed = "; ".join(problems[:_MAX_LISTED])
            raise UserError(f"the checkpoint does not fit the network that its shapes imply: {listed}{more}")
