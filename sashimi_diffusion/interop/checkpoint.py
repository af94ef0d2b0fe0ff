"""A state dict of the official code: a check that all its tensors are used, and that its network fits it."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.models.base import meta_state
from sashimi_diffusion.terminal import one_line

_MAX_LISTED = 12  # problems in an error message
Network = TypeVar("Network", bound=nn.Module)


class Checkpoint:
    """Tensors of an official state dict; :meth:`finish` reports missing, unfit and unused ones.

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

    def number(self, name: str) -> int:
        """Return a whole number of at least 0 that the code stores as a tensor.

        Raises:
            UserError: the tensor is missing, or is no such number.
        """
        self.shape(name, 0)
        tensor = self.tensors[name]
        if tensor.is_floating_point() or tensor.is_complex() or int(tensor) < 0:
            raise UserError(f"the checkpoint does not fit any known network: {name} is {tensor}, expected a length")
        return int(tensor)

    def take(self, name: str, shape: tuple[int, ...], whole: bool = False, finite: bool = True) -> Tensor:
        """Return the tensor called ``name``.

        If it is missing or has another shape, other numbers or numbers that are not finite, record the problem and
        return zeros.

        Args:
            name: name in the state dict.
            shape: the expected shape.
            whole: the tensor has whole numbers, otherwise floating-point numbers.
            finite: all numbers must be finite.
        """
        if name not in self.tensors:
            self.report(f"missing {name} {tuple(shape)}")
            return torch.zeros(shape)
        self._taken.add(name)
        tensor = self.tensors[name]
        if tensor.shape != torch.Size(shape):
            self.report(f"misshapen {name}: {tuple(tensor.shape)}, expected {tuple(shape)}")
        elif tensor.is_complex() or tensor.is_floating_point() == whole:
            expected = "whole" if whole else "floating-point"
            self.report(f"{name} has numbers of type {str(tensor.dtype).removeprefix('torch.')}, expected {expected}")
        elif finite and not whole and not tensor.float().isfinite().all():
            self.report(f"not finite (NaN or infinity) {name}")
        else:
            return tensor
        return torch.zeros(shape)

    def copy(self, target: Tensor, name: str) -> None:
        """Copy the tensor called ``name`` into ``target``, which has the same shape."""
        with torch.no_grad():
            target.copy_(self.take(name, tuple(target.shape), whole=not target.is_floating_point()))

    def copy_computed(self, target: Tensor, value: Tensor, name: str) -> None:
        """Copy a value that was computed from the tensor called ``name``; record it if it is not finite."""
        with torch.no_grad():
            target.copy_(value)
        if not target.isfinite().all():
            self.report(f"no finite value for {name}")

    def report(self, problem: str) -> None:
        """Record a problem, for :meth:`finish`."""
        self._problems.append(problem)

    def finish(self) -> None:
        """Check that all requested tensors were found and fit, and that all tensors of the state dict were requested.

        Raises:
            UserError: some were not; the message lists missing, misshapen, other unfit and unexpected tensors.
        """
        extra = [f"unexpected {name}" for name in self.tensors if name not in self._taken]
        problems = self._problems + extra
        if problems:
            more = f"; and {len(problems) - _MAX_LISTED} more" if len(problems) > _MAX_LISTED else ""
            listed = "; ".join(one_line(problem, 200) for problem in problems[:_MAX_LISTED])
            raise UserError(f"the checkpoint does not fit the network that its shapes imply: {listed}{more}")


def build(network: Callable[..., Network], checkpoint: Checkpoint, **arguments: Any) -> Network:
    """Return the network that the shapes of a checkpoint imply; its size is compared with the checkpoint first.

    Args:
        network: class of the network.
        checkpoint: the state dict.
        **arguments: arguments of the constructor.

    Raises:
        UserError: no network has these arguments, or it has many more parameters than the checkpoint has numbers.
    """
    try:
        needed = sum(tensor.numel() for tensor in meta_state(network, arguments).values())
        given = sum(tensor.numel() for tensor in checkpoint.tensors.values())
        if needed > 2 * given + 1_000_000:
            raise ValueError(f"its shapes imply {needed:,} numbers, but it has only {given:,}")
        return network(**arguments)
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"the checkpoint does not fit any known network: {one_line(error)}") from error
