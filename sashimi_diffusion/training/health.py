"""Which state of a run may become a checkpoint, and where to go back to from one that may not.

A checkpoint is written only if the last step was finite, its loss has not jumped (:data:`JUMPED`), the average loss has
not exploded (:data:`counters.EXPLODED`), the weights and their average are usable, and the optimizer is finite.
Otherwise the earlier checkpoints and the pipeline stay as they are.
"""

from pathlib import Path

import torch
from torch import nn

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.training.checkpoints import list_checkpoints, step_of
from sashimi_diffusion.training.counters import EXPLODED, SMOOTHING, Counters
from sashimi_diffusion.training.muon import CombinedOptimizer
from sashimi_diffusion.training.optimizer import has_finite_state

JUMPED = 10
"""A loss has jumped if it is more than this multiple of the average of the good losses before it, and above the first.

An explosion begins so. An ordinary loss may do so once; it postpones a checkpoint until the next good loss.
"""

LARGEST_WEIGHT = 1e9
"""Larger weights are the result of an explosion, also where they are finite."""


class RunEnded(UserError):
    """A run ended badly although its input was valid, for example because it diverged."""

    exit_code = 1


class Health:
    """The health of a run: counts its losses, and says what is wrong with its state and where to go back to.

    Args:
        run: the run folder.
        counters: counters of the run, which are updated.
        network: the network.
        average: the network with the averaged weights.
        optimizer: the optimizer of the network.
        max_nonfinite: number of steps in a row that are not finite after which the run ends.
    """

    def __init__(
        self,
        run: Path,
        counters: Counters,
        network: nn.Module,
        average: nn.Module,
        optimizer: torch.optim.Optimizer | CombinedOptimizer,
        max_nonfinite: int,
    ) -> None:
        self.run, self.counters, self.network, self.average = run, counters, network, average
        self.optimizer, self.max_nonfinite = optimizer, max_nonfinite
        self.good_step = counters.step
        """The last step with a good loss, which was computed with the weights after the step before it."""
        self._good_average = counters.loss_average
        self._jumped: list[float] = []  # the losses since the last good one

    def count(self, step: int, loss: float, norm: float) -> bool:
        """Count a step with this loss and gradient norm, and return whether both are finite.

        Raises:
            RunEnded: too many steps in a row were not finite.
        """
        finite = self.counters.count(loss, norm)
        if finite and self._is_good(loss):
            self.good_step = step
        if self.counters.nonfinite_in_row >= self.max_nonfinite and not finite:
            problem = nonfinite_message(self.network, loss, self.counters.nonfinite_in_row)
            raise RunEnded(f"{problem}; {self.way_back()}")
        return finite

    def _is_good(self, loss: float) -> bool:
        """Return whether a finite loss, which was counted, has neither jumped nor exploded."""
        if self._good_average is None or self.counters.loss_first is None:
            self._good_average = loss
        elif loss > max(JUMPED * self._good_average, self.counters.loss_first):
            self._jumped.append(loss)
            return False
        else:
            self._good_average += SMOOTHING * (loss - self._good_average)
        self._jumped.clear()
        return not self.counters.exploded

    def problem(self, finished: bool = False) -> str:
        """Return why the state of the run must not become a checkpoint, or ""; it may wait for the device.

        Args:
            finished: whether the run ends now; a single loss that has jumped is then no problem.
        """
        counters = self.counters
        if counters.nonfinite_in_row:
            return f"the last {counters.nonfinite_in_row} step(s) were not finite"
        if counters.exploded:
            return (
                f"the loss is {counters.loss_average:.4g} on average, more than {EXPLODED} times its lowest average, "
                f"{counters.loss_lowest:.4g}"
            )
        if len(self._jumped) > finished:
            return (
                f"the loss has jumped to {self._jumped[-1]:.4g}, more than {JUMPED} times the average before, "
                f"{self._good_average:.4g}"
            )
        for what, model in (("weights", self.network), ("averaged weights", self.average)):
            if not usable(model):
                return f"the {what} are not finite or larger than {LARGEST_WEIGHT:g}"
        if not has_finite_state(self.optimizer):
            return "the averages of the gradients in the optimizer are not finite"
        return ""

    def way_back(self) -> str:
        """Return what the user can do after the run has diverged."""
        lower = "a lower optimizer.lr or a lower optimizer.gradient_clip"
        saved = list_checkpoints(self.run)
        if not saved:
            return f"no checkpoint was written: start again in another output_dir with {lower}"
        # A later checkpoint may have the weights that made the loss explode.
        known = [path for path in saved if step_of(path) < self.good_step] or saved
        return f"resume with {lower} from the last good checkpoint: --resume-from checkpoints/{known[-1].name}"

    def end(self, problem: str) -> None:
        """Raise an error if the last state of a run has a problem.

        Args:
            problem: result of :meth:`problem`.

        Raises:
            RunEnded: there is a problem.
        """
        if problem:
            step = self.counters.step
            raise RunEnded(f"the run ended at step {step} without a result, because {problem}; {self.way_back()}")


@torch.no_grad()
def usable(model: nn.Module) -> bool:
    """Return whether all weights are finite and not larger than ``LARGEST_WEIGHT``."""
    largest = [parameter.abs().amax() for parameter in model.parameters() if parameter.numel()]
    return bool((torch.stack(largest) <= LARGEST_WEIGHT).all())


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
