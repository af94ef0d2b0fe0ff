"""The interface between the training loop and a kind of run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from sashimi_diffusion.training.model_card import Usage
from sashimi_diffusion.training.run_folder import Saveable


class Task(Protocol):
    """Protocol of a kind of run: its data, network, loss, metrics and samples.

    Attributes:
        network: the diffusers model to train.
        module: the module that computes the loss: the network, or a module that contains it. The loop prepares it for
            distributed training.
        measured: arguments of the network that were measured on the training data; empty if there are none.
        data: fingerprint of the training recordings, for a distillation with the hash of the teacher.
        description: the numbers of examples, for the first line of the output.
        chunks: number of optimizer steps that train on consecutive chunks of the same examples; 1 if examples are not
            divided. A run ends only after a multiple of this number.
        samples: number of clips that ``save_samples`` generates; 0 if the task generates none.
        against_graph: why a training step cannot be recorded as a CUDA graph, for instance because its loss uses the
            results of the step before it; "" if it can. The batches of such a task have equal shapes on a GPU.
        usage: what the card of the pipeline says about every model of this kind.
    """

    network: Any
    module: nn.Module
    measured: Mapping[str, float]
    data: str
    description: str
    chunks: int
    samples: int
    against_graph: str
    usage: Usage

    def __init__(self, config: Any, device: torch.device, skip_bad_files: bool) -> None:
        """Open the data and build the network.

        Raises:
            UserError: the config and the data do not fit together; nothing has been written.
        """

    def batch(self, step: int, positions: range, global_batch: int) -> Any:
        """Return the examples at ``positions`` in an optimizer step, a dataclass whose tensors are on the CPU.

        The global batch of an optimizer step consists of the examples of all processes and accumulation steps. Threads
        may call this method for later steps, so the result depends on the arguments only.

        Args:
            step: index of the optimizer step, from 0.
            positions: positions of the examples in the global batch.
            global_batch: number of examples in the global batch.
        """

    def complete(self, batch: Any, step: int, positions: range, global_batch: int) -> Any:
        """Return the argument of :meth:`loss` for a result of :meth:`batch` whose tensors were moved to the device.

        It is called before each :meth:`loss`, and never recorded: random numbers are drawn and seeds set here.

        Args:
            batch: result of :meth:`batch`, on the device.
            step, positions, global_batch: arguments of :meth:`batch`.
        """

    def loss(self, module: nn.Module, batch: Any) -> Tensor:
        """Return the mean loss of a batch, a scalar with a gradient.

        Args:
            module: ``self.module``, prepared for distributed training.
            batch: result of :meth:`complete`, a dataclass.
        """

    def validate(self, accelerator: Accelerator, network: Any) -> dict[str, float]:
        """Return metrics of the held-out data, which include "validation_loss"; empty if there are no such data.

        All processes call this method and receive the same metrics.

        Args:
            accelerator: the Accelerator of the run.
            network: the network with the averaged weights.
        """

    def conclude(self, accelerator: Accelerator, network: Any) -> dict[str, float]:
        """Return the metrics that are computed once, after the last optimizer step; empty if there are none."""

    def pipeline(self, network: Any) -> Saveable:
        """Return the object that the run saves in its folder ``pipeline``."""

    def save_samples(self, run: Path, step: int, network: Any) -> str:
        """Generate clips in the folder ``run``/samples of the run folder; return a text on their defects, or ""."""
