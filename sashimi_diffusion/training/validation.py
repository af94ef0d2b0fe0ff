"""The loss on recordings the network never trains on, with the same noise and timesteps every time."""

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from sashimi_diffusion.training.batches import BatchSource
from sashimi_diffusion.training.objective import diffusion_losses


@torch.no_grad()
def validation_loss(
    accelerator: Accelerator,
    model: nn.Module,
    scheduler,
    source: BatchSource,
    batch_size: int,
    examples: int,
    min_snr_gamma: float | None,
) -> float:
    """Mean loss over up to ``examples`` recordings of ``source``, shared among the processes.

    Each example has noise and a timestep of its own that depend on nothing but the run's seed, so the figures of a run
    can be compared with each other.
    """
    indices = np.unique(np.linspace(0, len(source.dataset) - 1, min(examples, len(source.dataset))).round().astype(int))
    batches = [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]
    total = torch.zeros((), device=accelerator.device)
    for chosen in batches[accelerator.process_index :: accelerator.num_processes]:
        with accelerator.autocast():
            losses = diffusion_losses(model, scheduler, source.validation_batch(chosen.tolist()), min_snr_gamma)
        total += losses.sum()
    return accelerator.reduce(total, "sum").item() / len(indices)
