"""The interface between the training loop and a kind of run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from sashimi_diffusion.training.run_folder import Saveable


class Task(Protocol):
    """Data, network, loss and samples of one kind of run.

    Attributes:
        network: the diffusers model to train.
        module: the module that computes the loss: the network, or a module that contains it. The loop prepares it for
            distributed training.
        measured: arguments of the network that were measured on the training data; empty if there are none.
        data: fingerprint of the training recordings.
        description: the numbers of examples, for the first line of the output.
        chunks: a run ends only after a multiple of this number of optimizer steps.
        samples: number of samples drawn at a time; 0: the task draws none.
    """

    network: Any
    module: nn.Module
    measured: Mapping[str, float]
    data: str
    description: str
    chunks: int
    samples: int

    def __init__(self, config: Any, device: torch.device, skip_bad_files: bool) -> None:
        """Open the data and build the network.

        Raises:
            UserError: the config cannot work with the data; nothing has been written then.
        """

    def loss(self, module: nn.Module, step: int, positions: range, global_batch: int) -> Tensor:
        """Return the mean loss, a scalar with a gradient, of the examples at ``positions`` of the global batch of
        ``step``."""

    def validate(self, accelerator: Accelerator, network: Any) -> dict[str, float]:
        """Return metrics of the held-out data, among them "validation_loss"; empty if there are no such data."""

    def conclude(self, accelerator: Accelerator, network: Any) -> dict[str, float]:
        """Return metrics at the end of the run, which may be empty."""

    def pipeline(self, network: Any) -> Saveable:
        """Return what the run saves for use."""

    def save_samples(self, run: Path, step: int, network: Any) -> str:
        """Draw samples into ``run``/samples and return a description of their defects, empty if there are none."""
