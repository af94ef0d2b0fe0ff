"""Safe reading of the tensors of a pickled network, without running its code."""

import pickle
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from sashimi_diffusion.interop.checkpoint import RefusedPickle, read_state_dict


class _Placeholder:
    """Replacement for every class and function that a pickle names: it stores its state and does nothing."""

    def __init__(self, *arguments: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        self.state = state if isinstance(state, dict) else {}


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Return the state dict in a file, which may also be a pickled network such as the official SC09 classifier.

    A pickled network names its classes, and normal loading would import and run them. Here a placeholder class receives
    the tensors instead.

    Raises:
        UserError: as :func:`read_state_dict`.
    """
    try:
        return read_state_dict(path)
    except RefusedPickle as error:
        tensors = _read_network(Path(path))
        if tensors is None:
            raise RefusedPickle(
                f"{error}. If you trust it, extract its tensors where the official code can be imported: "
                f'network = torch.load("{Path(path).name}", map_location="cpu", weights_only=False) and then '
                'torch.save(network.state_dict(), "state.pth"); and convert state.pth'
            ) from error
        return tensors


def _read_network(path: Path) -> dict[str, Tensor] | None:
    """Return the tensors of a pickled network by name, or None if it is not one or cannot be read safely."""
    try:
        unknown = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        with torch.serialization.safe_globals([(_Placeholder, name) for name in unknown]):
            network = torch.load(path, map_location="cpu", weights_only=True)
    except (AttributeError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, TypeError):
        return None  # an old version of torch, an old file format, or content that is not a network
    return dict(_tensors(network)) or None


def _tensors(module: object, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters and buffers of a placeholder with the state of an ``nn.Module``, and of its children."""
    state = getattr(module, "state", {})
    for kind in ("_parameters", "_buffers"):
        for name, tensor in (state.get(kind) or {}).items():
            if isinstance(tensor, Tensor):
                yield prefix + name, tensor
    for name, child in (state.get("_modules") or {}).items():
        yield from _tensors(child, f"{prefix}{name}.")
