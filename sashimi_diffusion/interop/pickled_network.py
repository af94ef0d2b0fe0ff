"""The tensors of a pickled network, without running anything that the pickle names."""

import pickle
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from sashimi_diffusion.interop.checkpoint import RefusedPickle, read_state_dict


class _StandIn:
    """Takes the place of every class and function that a pickle names: keeps what it is given, and does nothing."""

    def __init__(self, *arguments: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        self.state = state if isinstance(state, dict) else {}


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a file: as :func:`read_state_dict`, and of a pickled network too, as the SC09 classifier is.

    Such a file names the classes of its network, and loading it as it is meant would import and run them. Here none of
    them is: harmless stand-ins receive the tensors.

    Raises:
        UserError: as :func:`read_state_dict`.
    """
    try:
        return read_state_dict(path)
    except RefusedPickle as error:
        tensors = _read_network(Path(path))
        if tensors is None:
            raise RefusedPickle(
                f"{error}. If you trust it, write its tensors alone where the official code can be imported: "
                f'network = torch.load("{Path(path).name}", map_location="cpu", weights_only=False) and then '
                'torch.save(network.state_dict(), "state.pth"); and convert state.pth'
            ) from error
        return tensors


def _read_network(path: Path) -> dict[str, Tensor] | None:
    """The tensors of a pickled network by their names; None if that cannot be had safely, or it is none."""
    try:
        unknown = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        with torch.serialization.safe_globals([(_StandIn, name) for name in unknown]):
            network = torch.load(path, map_location="cpu", weights_only=True)
    except (AttributeError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, TypeError):
        return None  # an old torch, an old file format, or something that no network needs
    return dict(_tensors(network)) or None


def _tensors(module: object, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers of a stand-in that was given the state of an ``nn.Module``, and of those in it."""
    state = getattr(module, "state", {})
    for kind in ("_parameters", "_buffers"):
        for name, tensor in (state.get(kind) or {}).items():
            if isinstance(tensor, Tensor):
                yield prefix + name, tensor
    for name, child in (state.get("_modules") or {}).items():
        yield from _tensors(child, f"{prefix}{name}.")
