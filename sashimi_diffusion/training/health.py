"""Which state of a run may become a checkpoint, and where to go back to from one that may not.

A checkpoint is written only if the last step was finite, the loss has not exploded (:data:`counters.EXPLODED`) and the
weights and their average are usable. Otherwise the earlier checkpoints and the pipeline stay as they are.
"""

from pathlib import Path

import torch
from torch import nn

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.training.checkpoints import list_checkpoints, step_of
from sashimi_diffusion.training.counters import EXPLODED, Counters


LARGEST_WEIGHT = 1e9
"""Larger weights are the result of an explosion, also where they are finite."""


class RunEnded(UserError):
    """A run ended badly although its input was valid, for example because it diverged. Commands exit with code 1."""


def problem_of(counters: Counters, network: nn.Module, average: nn.Module) -> str:
    """Return why the state of a run must not become a checkpoint, or "". It waits for the device once or twice.

    Args:
        counters: counters of the run, which include the last step.
        network: the network.
        average: the network with the averaged weights.
    """
    if counters.nonfinite_in_row:
        return f"the last {counters.nonfinite_in_row} step(s) were not finite"
    if counters.exploded:
        return (
            f"the loss is {counters.loss_average:.4g} on average, more than {EXPLODED} times its lowest average, "
            f"{counters.loss_lowest:.4g}"
        )
    for what, model in (("weights", network), ("averaged weights", average)):
        if not usable(model):
            return f"the {what} are not finite or larger than {LARGEST_WEIGHT:g}"
    return ""


@torch.no_grad()
def usable(model: nn.Module) -> bool:
    """Return whether all weights are finite and not larger than ``LARGEST_WEIGHT``."""
    largest = [parameter.abs().amax() for parameter in model.parameters() if parameter.numel()]
    return bool((torch.stack(largest) <= LARGEST_WEIGHT).all())


def way_back(run: Path, good_step: int) -> str:
    """Return what the user can do after a run has diverged.

    Args:
        run: the run folder.
        good_step: the last step with a good loss. It was computed with the weights after the step before, so
            checkpoints of earlier steps are known to be good.
    """
    lower = "a lower optimizer.lr or a lower optimizer.gradient_clip"
    saved = list_checkpoints(run)
    if not saved:
        return f"no checkpoint was written: start again in another output_dir with {lower}"
    known = [path for path in saved if step_of(path) < good_step] or saved
    return f"resume with {lower} from the last good checkpoint: --resume-from checkpoints/{known[-1].name}"


def nonfinite_message(network: nn.Module, loss: float, count: int) -> str:
    """Return the text of an error that names the first parameter or gradient that is not finite.

    Args:
        network: the network after the last step.
        loss: loss of the last step.
        count: number of steps in a row that were not finite.
    """
    parameters = list(network.named_parameters())
    values = [(f"the parameter {name}", parameter) for name, parameter in parameters]
    gradients = [(f"the gradient of the parameter {name}", parameter.grad) for name, parameter in parameters]
    for what, tensor in values + gradients:
        if tensor is not None and not tensor.isfinite().all():
            return f"{count} steps in a row were not finite: first of all {what}"
    return f"{count} steps in a row were not finite: the loss is {loss}, but all parameters and gradients are finite"
