"""Safe reading of the tensors of a pickled network, without running its code."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.interop.files import RefusedPickle, check_tensors, is_archive, load_pickle, read_state_dict
from sashimi_diffusion.terminal import printable

_MAX_MODULES, _MAX_DEPTH = 100_000, 64  # of a network; the official classifier has about 130 in 5 levels


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
    path = Path(path)
    try:
        return read_state_dict(path)
    except RefusedPickle as error:
        tensors = _tensors(path, _read_network(path))
        if not tensors:
            raise RefusedPickle(
                f"{error}. If you trust it, extract its tensors where the official code can be imported: "
                f'network = torch.load("{printable(path.name)}", map_location="cpu", weights_only=False) and then '
                'torch.save(network.state_dict(), "state.pth"); and convert state.pth'
            ) from error
        check_tensors(path, tensors)
        return tensors


def _read_network(path: Path) -> object:
    """Return the content of a refused archive, in which placeholders replace all classes; None if there is none."""
    if not is_archive(path):
        return None  # torch replaces classes in archives only
    try:
        unknown = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        with torch.serialization.safe_globals([(_Placeholder, name) for name in unknown]):
            return load_pickle(path, archive=True)
    except Exception:  # what has no tensors that can be read safely stays refused
        return None


def _tensors(path: Path, network: object) -> dict[str, Tensor]:
    """Return the parameters and buffers of a network of placeholders by name, as ``state_dict`` does.

    Raises:
        UserError: modules contain each other, or are shared so often that the names would not end.
    """
    tensors: dict[str, Tensor] = {}
    waiting = [("", network, 0)]
    visits = 0
    while waiting:
        prefix, module, depth = waiting.pop()
        visits += 1
        if visits > _MAX_MODULES or depth > _MAX_DEPTH:
            raise UserError(
                f"{printable(path)} cannot be converted: the modules of its network contain each other, or have more "
                f"than {_MAX_MODULES:,} names or {_MAX_DEPTH} levels"
            )
        for kind in ("_parameters", "_buffers"):
            for name, tensor in _entries(module, kind).items():
                if isinstance(tensor, Tensor):
                    tensors[prefix + name] = tensor
        waiting += [(f"{prefix}{name}.", child, depth + 1) for name, child in _entries(module, "_modules").items()]
    return tensors


def _entries(module: object, kind: str) -> Mapping[str, object]:
    """Return the parameters, buffers or children of a placeholder by name."""
    entries = getattr(module, "state", {}).get(kind) if isinstance(module, _Placeholder) else None
    return {name: one for name, one in entries.items() if isinstance(name, str)} if isinstance(entries, dict) else {}
