"""What a kind of training run consists of, as the loop sees it."""

from pathlib import Path
from typing import Any, Protocol

import torch
from diffusers import ModelMixin
from torch import Tensor, nn

from sashimi_diffusion.training.config import RunConfig
from sashimi_diffusion.training.saved_pipeline import Saveable


class Task(Protocol):
    """Data, network, loss and samples of one kind of run.

    Attributes:
        network: what is trained.
        module: what computes the loss, the network or a module around it; the loop prepares it for its processes.
        data: fingerprint of the training recordings.
        description: the numbers of examples, in words.
        chunks: steps that belong together: a run ends only after a multiple of them.
        samples: how many samples are drawn at a time; 0: never any.
    """

    network: ModelMixin
    module: nn.Module
    data: str
    description: str
    chunks: int
    samples: int

    def __init__(self, config: RunConfig, device: torch.device, skip_bad_files: bool) -> None:
        """Open the data and make the network; raises UserError for what cannot work, before anything is written."""

    def loss(self, module: nn.Module, step: int, positions: range, global_batch: int) -> Tensor:
        """The mean loss, a scalar with a gradient, of the examples at ``positions`` of the global batch of ``step``."""

    def validate(self, accelerator: Any, network: ModelMixin) -> dict[str, float]:
        """What metrics.jsonl is told of held-out data, "validation_loss" among it; empty if there are none."""

    def conclude(self, accelerator: Any, network: ModelMixin) -> dict[str, float]:
        """The same at the end of the run."""

    def pipeline(self, network: ModelMixin) -> Saveable:
        """What is saved for people to use."""

    def save_samples(self, run: Path, step: int, network: ModelMixin) -> str:
        """Draw samples into ``run``/samples; returns what is wrong with them, in words."""
