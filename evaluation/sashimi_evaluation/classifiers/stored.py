"""The base class of the networks of this package, which are loaded from folders or bundled with it."""

from pathlib import Path
from typing import ClassVar

from sashimi_diffusion.models.base import StoredModel

PRETRAINED = Path(__file__).resolve().parent.parent / "pretrained"
"""Folder of the networks that are part of the package."""


class EvaluationNetwork(StoredModel):
    """A diffusers model whose ``from_pretrained`` takes the names of the networks in :data:`PRETRAINED`."""

    bundled: ClassVar[Path] = PRETRAINED
