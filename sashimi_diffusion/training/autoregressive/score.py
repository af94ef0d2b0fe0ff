"""Negative log-likelihood of recordings, the state carried from their beginning to their end."""

import math
from collections.abc import Sequence

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional as F

from sashimi_diffusion.models import AutoregressiveModel
from sashimi_diffusion.training.autoregressive.batches import IGNORED, padded


@torch.no_grad()
def bits_per_sample(
    accelerator: Accelerator,
    model: AutoregressiveModel,
    examples: Sequence[Tensor],
    batch_size: int,
    chunk: int,
) -> float:
    """Mean over all samples of all ``examples`` of -log2 p(sample | all before it in its example).

    Cross-entropy in nats over ln 2, as the SaShiMi paper's NLL (arXiv 2202.09729, section 5); every example begins from
    rest, and its state is carried from chunk to chunk. The work is shared among the processes.

    Args:
        examples: tokens, int64 (L,), of any lengths.
        batch_size: how many at once.
        chunk: samples of each in one pass.
    """
    ordered = sorted(examples, key=len)
    batches = [ordered[start : start + batch_size] for start in range(0, len(ordered), batch_size)]
    nats = torch.zeros((), dtype=torch.float64, device=accelerator.device)
    for batch in batches[accelerator.process_index :: accelerator.num_processes]:
        inputs, targets = (part.to(accelerator.device) for part in padded(batch, 1, model.start_token))
        state = None
        for now, wanted in zip(inputs.split(chunk, dim=1), targets.split(chunk, dim=1), strict=True):
            with accelerator.autocast():
                logits, state = model.prefill(now, state)
            nats += F.cross_entropy(logits.float(), wanted, ignore_index=IGNORED, reduction="sum").double()
    total = accelerator.reduce(nats, "sum").item()
    return total / sum(len(example) for example in examples) / math.log(2)
