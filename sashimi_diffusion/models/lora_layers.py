"""The layer that adds LoRA adapters (arXiv 2106.09685) to a linear map, for every way in which its weight is used.

The layers of the package peft add the low-rank product to the output of ``forward``. The networks of this package also
read weights for fused operations, which would ignore such adapters without a word. Here ``weight`` contains the
adapters, so that both give the same output. This module needs peft and is imported only when an adapter is added.
"""

from typing import Any, cast

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn
from torch.nn import functional as F

from sashimi_diffusion.ssm.pointwise import Pointwise
from sashimi_kernels import pointwise

ADAPTABLE = (nn.Linear, Pointwise)
"""Classes of the maps that can have adapters."""


class AdaptedMap(Linear):
    """A linear map with adapters: ``weight`` is W + sum of scaling · B · A over the active adapters.

    The base layer is an ``nn.Linear``, or a map of channels (:class:`Pointwise`), also with weight normalization. A and
    B are matrices of shapes (rank, in) and (out, rank).
    """

    @property
    def weight(self) -> Tensor:
        """The weight with the active adapters, in the shape and dtype of the base layer's."""
        weight = cast(Tensor, self.get_base_layer().weight)
        if self.disable_adapters:
            return weight - self._sum(self.merged_adapters) if self.merged_adapters else weight
        active = [name for name in self.active_adapters if name in self.lora_A and name not in self.merged_adapters]
        return weight + self._sum(active) if active else weight

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        """Apply the map with the active adapters to (B, in, L), or to (..., in) if it is an ``nn.Linear``."""
        bias = self.bias
        if isinstance(self.get_base_layer(), Pointwise):
            return pointwise(x, self.weight.squeeze(-1), bias)
        return F.linear(x, self.weight, bias)

    def matrices(self, adapter: str) -> dict[str, Tensor]:
        """Return A, (rank, in), as "lora_A" and B, (out, rank), as "lora_B"."""
        parts: dict[str, Any] = {"lora_A": self.lora_A[adapter], "lora_B": self.lora_B[adapter]}
        return {name: part.weight for name, part in parts.items()}

    def get_delta_weight(self, adapter: str) -> Tensor:
        """Return scaling · B · A of an adapter in the shape and dtype of the base layer's weight."""
        base = cast(Tensor, self.get_base_layer().weight)
        matrices = self.matrices(adapter)
        product = matrices["lora_B"] @ matrices["lora_A"]
        return (product * self.scaling[adapter]).reshape(base.shape).to(base.dtype)

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add adapters to the weight of the base layer; None adds the active ones.

        Raises:
            ValueError: ``safe_merge``, and the weight would not be finite; it is unchanged.
        """
        names = self.active_adapters if adapter_names is None else adapter_names
        names = [name for name in names if name in self.lora_A and name not in self.merged_adapters]
        if not names:
            return
        base: Any = self.get_base_layer()
        merged = base.weight + self._sum(names)
        if safe_merge and not merged.isfinite().all():
            raise ValueError(f"the weights would not be finite with the adapters {', '.join(names)}")
        _assign(base, merged)
        self.merged_adapters.extend(names)

    @torch.no_grad()
    def unmerge(self) -> None:
        """Subtract the merged adapters from the weight of the base layer."""
        if self.merged_adapters:
            base: Any = self.get_base_layer()
            _assign(base, base.weight - self._sum(self.merged_adapters))
            self.merged_adapters.clear()

    def _sum(self, adapters: list[str]) -> Tensor:
        return cast(Tensor, sum(self.get_delta_weight(name) for name in adapters))


def _assign(base: Any, weight: Tensor) -> None:
    """Write a weight in place, or, with weight normalization, its magnitude and direction."""
    if "weight" in base._parameters:
        base.weight.copy_(weight)
    else:
        base.weight = weight
