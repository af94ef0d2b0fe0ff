"""Layers that all networks share: convolutions with weight normalization, and typed lists of modules."""

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from sashimi_diffusion.ssm.cache import Cached
from sashimi_diffusion.ssm.pointwise import Pointwise

T = TypeVar("T")


class NormalizedWeight(Cached):
    """A weight as magnitude and direction, g · v / ‖v‖ per index of the first axis (arXiv 1602.07868, equation 2).

    The parameters have the same names as those of ``torch.nn.utils.parametrizations.weight_norm``, so the state dicts
    are interchangeable. That function is not used because it creates a new class for every layer: such layers cannot be
    pickled, and ``torch.compile`` compiles each one separately.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.original0 = nn.Parameter(torch.norm_except_dim(weight, 2, 0))  # g
        self.original1 = nn.Parameter(weight)  # v

    def forward(self) -> Tensor:
        """Return the normalized weight."""
        return self.cache.get(self, "weight", None, lambda: torch._weight_norm(self.original1, self.original0, 0))

    @torch.no_grad()
    def assign(self, weight: Tensor) -> None:
        """Set magnitude and direction to those of ``weight``."""
        self.original0.copy_(torch.norm_except_dim(weight, 2, 0))
        self.original1.copy_(weight)


class WeightNorm(nn.Module):
    """Mixin that normalizes the weight of the next base class, a convolution."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Remove the parameter that the convolution has registered: the property would hide it.
        weight = cast(nn.Parameter, self._parameters.pop("weight"))
        self.parametrizations = nn.ModuleDict({"weight": NormalizedWeight(weight)})

    @property
    def weight(self) -> Tensor:
        """The normalized weight; assigning to it sets magnitude and direction."""
        return cast(NormalizedWeight, self.parametrizations["weight"])()

    @weight.setter
    def weight(self, value: Tensor) -> None:
        cast(NormalizedWeight, self.parametrizations["weight"]).assign(value)


class WeightNormPointwise(WeightNorm, Pointwise):
    """:class:`Pointwise` with weight normalization."""


class WeightNormConv1d(WeightNorm, nn.Conv1d):
    """``nn.Conv1d`` with weight normalization."""


class WeightNormConvTranspose2d(WeightNorm, nn.ConvTranspose2d):
    """``nn.ConvTranspose2d`` with weight normalization over its first axis."""


def pointwise(in_channels: int, out_channels: int, weight_norm: bool = True) -> Pointwise:
    """Return a linear map from (B, in_channels, L) to (B, out_channels, L), the same at every position."""
    return WeightNormPointwise(in_channels, out_channels) if weight_norm else Pointwise(in_channels, out_channels)


def module_list(modules: Iterable[T]) -> Sequence[T]:
    """Return an ``nn.ModuleList`` whose type names its elements, for type checkers."""
    return cast(Sequence[T], nn.ModuleList(cast(Iterable[nn.Module], modules)))
