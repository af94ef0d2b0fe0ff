"""Weights of published networks: state dicts whose names and shapes are checked before anything is allocated."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.interop.files import read_state_dict
from sashimi_diffusion.terminal import listed, printable

_LISTED = 4
_COUNTER = "num_batches_tracked"  # of batch norms, which evaluation does not use


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file of published weights; see :func:`sashimi_diffusion.interop.files.read_state_dict`.

    Raises:
        UserError: the file does not exist, cannot be read, could run code, or contains no state dict.
    """
    return read_state_dict(path, ("model_state_dict", "state_dict", "model"))


def shape_of(tensors: Mapping[str, Tensor], name: str, dims: int, path: Path, what: str) -> tuple[int, ...]:
    """Return the shape of a tensor that determines the sizes of a network.

    Raises:
        UserError: the tensor is missing, is empty, or does not have ``dims`` dimensions.
    """
    shape = tuple(tensors[name].shape) if name in tensors else None
    if shape is None or len(shape) != dims or 0 in shape:
        problem = f"missing {name}" if shape is None else f"misshapen {name} {shape}"
        raise UserError(f"{printable(path)} has no weights of {what}: {problem}")
    return shape


def load_weights(
    network: nn.Module, tensors: Mapping[str, Tensor], path: Path, what: str, unused: Sequence[str] = ()
) -> None:
    """Put the tensors of a file into a network, as float32.

    Args:
        network: the network, on the meta device.
        tensors: the tensors of the file.
        path: the file, for error messages.
        what: name of the network, for error messages.
        unused: beginnings of the names of tensors that the file may have, but the network does not use.

    Raises:
        UserError: a tensor is missing, unexpected or misshapen, or has numbers that are not finite.
    """
    wanted = network.state_dict()
    needed = [name for name in wanted if not name.endswith(_COUNTER)]
    problems = [f"missing {name}" for name in needed if name not in tensors]
    problems += [
        f"misshapen {name} {tuple(tensors[name].shape)}, expected {tuple(wanted[name].shape)}"
        for name in needed
        if name in tensors and tensors[name].shape != wanted[name].shape
    ]
    unknown = [name for name in tensors if name not in wanted and not name.startswith(tuple(unused))]
    problems += [f"unexpected {printable(name)[:80]}" for name in unknown]
    if problems:
        raise UserError(f"{printable(path)} does not fit {what}: {listed(problems, _LISTED)}")
    wrong = next((name for name in needed if not tensors[name].float().isfinite().all()), None)
    if wrong is not None:
        raise UserError(f"{printable(path)} has weights that are NaN or infinite ({wrong}): use another file")
    state = {name: tensors[name].float() for name in needed}
    state |= {name: tensor.new_zeros((), device="cpu") for name, tensor in wanted.items() if name.endswith(_COUNTER)}
    network.load_state_dict(state, assign=True)


def fingerprint_of(tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> str:
    """Return a hash of tensors by name, and of a description that JSON can hold."""
    digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
