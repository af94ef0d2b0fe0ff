"""Tensors and arrays that are given to a pipeline: audio, masks and spectrograms."""

import numbers
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sashimi_diffusion.arguments import short_form
from sashimi_diffusion.errors import UserError


def given_tensor(name: str, value: Any, expected: str) -> Tensor:
    """Return a tensor or an array of numbers as a tensor, without gradients. An array is copied.

    Args:
        name: name of the argument.
        value: the argument.
        expected: what it should be, for the error message.

    Raises:
        UserError: it is something else, or a tensor that has complex numbers, is sparse or quantized, or has no values
            because it is on the device meta.
    """
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        # torch has neither other byte orders nor floating-point numbers of more than 64 bits.
        native = np.float64 if value.dtype.kind == "f" and value.dtype.itemsize > 8 else value.dtype.newbyteorder("=")
        return torch.from_numpy(np.array(value, dtype=native, order="C"))
    if not isinstance(value, Tensor) or value.is_complex() or value.is_quantized or value.layout != torch.strided:
        raise UserError(f"{name} is {_named(value)}: expected a tensor or an array of {expected}")
    if value.is_meta:
        raise UserError(f"{name} is on the device meta, which has no values: expected {expected}")
    return value.detach()


def floating_tensor(name: str, value: Any, expected: str) -> Tensor:
    """Return a tensor or an array of floating-point numbers as a float32 tensor, see :func:`given_tensor`.

    Numbers beyond the range of float32 become infinite.

    Raises:
        UserError: an error of :func:`given_tensor`, or other numbers.
    """
    tensor = given_tensor(name, value, f"floating-point numbers, {expected}")
    if not tensor.is_floating_point():
        advice = "; divide 16-bit integers by 32768" if name == "audio" and tensor.dtype == torch.int16 else ""
        kind = str(tensor.dtype).removeprefix("torch.")
        raise UserError(f"{name} is numbers of {kind}: expected floating-point numbers, {expected}{advice}")
    return tensor.float()


def checked_rate(sample_rate: Any) -> int:
    """Return a sample rate in Hz; raise UserError if it is no whole number."""
    whole = isinstance(sample_rate, numbers.Real) and not isinstance(sample_rate, bool) and sample_rate % 1 == 0
    if not whole:
        raise UserError(f"sample_rate is {short_form(sample_rate)}: expected a whole number of Hz")
    return int(sample_rate)


def _named(value: Any) -> str:
    """Return a value in a few words: a tensor or an array by its numbers and its shape."""
    if not isinstance(value, Tensor | np.ndarray):
        return short_form(value)
    kind = "a sparse tensor" if isinstance(value, Tensor) and value.layout != torch.strided else "numbers"
    return f"{kind} of {value.dtype} of shape {tuple(value.shape)}"
