"""An optimizer step: losses, gradient, clipping, optimizer and averaged weights.

:class:`EagerStep` decides in Python whether a step is finite. :class:`DeviceStep` decides on the device, so that no
value is read between two steps and a CUDA graph can repeat the whole step.
"""

import contextlib
import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from sashimi_diffusion.cuda_graph import record_cuda_graph, run_on_side_stream
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.terminal import first_line, say
from sashimi_diffusion.training.config import RunConfig
from sashimi_diffusion.training.ema import Ema
from sashimi_diffusion.training.feed import Feed, map_tensors
from sashimi_diffusion.training.muon import CombinedOptimizer
from sashimi_diffusion.training.optimizer import gradient_norm, parts_of, scale_gradients
from sashimi_diffusion.training.task import Task

WARM_UP = 3
"""Steps before the recording; they compile kernels and create the state of the optimizer."""

LEAD = 2
"""Steps that Python may start before the device has finished them."""

Record = Callable[[Callable[[], None]], Callable[[], None]]
"""A function that returns a function that repeats its argument, for instance :func:`record_cuda_graph`."""

Result = tuple[float, float]
"""Mean loss of the global batch, and 2-norm of the gradient before clipping."""


@dataclass
class Parts:
    """The parts of a training step.

    Args:
        accelerator: of the run.
        task: the kind of run.
        module: the module of the task, prepared for distributed training.
        optimizer: optimizer of the network of the task.
        ema: averaged weights of the network.
        feed: source of the batches.
        config: configuration of the run; its clipping and limits are used.
    """

    accelerator: Accelerator
    task: Task
    module: nn.Module
    optimizer: torch.optim.Optimizer | CombinedOptimizer
    ema: Ema
    feed: Feed
    config: RunConfig

    def gradient(self, batches: Iterable[Any]) -> tuple[Tensor, Tensor]:
        """Compute the gradient of an optimizer step; return the mean loss and the norm of :data:`Result`, scalars."""
        self.optimizer.zero_grad(set_to_none=True)
        count = self.config.training.gradient_accumulation
        total = torch.zeros((), device=self.feed.device)
        for part, batch in enumerate(batches, 1):
            with contextlib.nullcontext() if part == count else self.accelerator.no_sync(self.module):
                loss = self.task.loss(self.module, batch) / count
                self.accelerator.backward(loss)
            total += loss.detach()
        return self.accelerator.reduce(total, "mean"), gradient_norm(self.task.network)

    def say(self, text: str) -> None:
        """Print a line on the main process."""
        if self.accelerator.is_main_process:
            say(text)


class Step(Protocol):
    """Protocol of an optimizer step.

    Attributes:
        read_waits: whether :meth:`read` waits for the device.
    """

    read_waits: bool

    def run(self, step: int) -> None:
        """Take the optimizer step with index ``step``, with the learning rates of the optimizer.

        A step whose loss or gradient is not finite changes neither the weights nor the average.
        """

    def read(self) -> list[Result]:
        """Return the results of the steps since the last call, at most ``training.log_every``."""


class EagerStep:
    """Optimizer step that reads its result at once."""

    read_waits = False

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self._results: list[Result] = []

    def run(self, step: int) -> None:
        """See :meth:`Step.run`."""
        parts, clip = self.parts, self.parts.config.optimizer.gradient_clip
        loss, norm = torch.stack(parts.gradient(parts.feed.batches(step))).tolist()
        if math.isfinite(loss) and math.isfinite(norm):
            if clip is not None and norm > clip:
                scale_gradients(parts.task.network, clip / norm)
            parts.optimizer.step()
            parts.ema.update(parts.task.network)
        self._results.append((loss, norm))

    def read(self) -> list[Result]:
        """See :meth:`Step.read`."""
        results, self._results = self._results, []
        return results


class DeviceStep:
    """Optimizer step without a value that Python waits for.

    Every batch is copied into the same memory, and everything that changes between steps is in tensors. The optimizer
    has its learning rates in tensors. It divides the gradient by ``grad_scale`` and changes nothing if ``found_inf`` is
    1, as PyTorch's fused AdamW does for ``GradScaler``.

    After ``training.max_nonfinite`` steps in a row that were not finite, all later steps are skipped, too: the weights
    stay those at which the run has to stop.

    Args:
        parts: the parts of the step.
        nonfinite_in_row: number of steps before the first one that were not finite.
        record: records the step after ``WARM_UP`` steps; None: every step runs in Python.
        fall_back: report an error of ``record`` and run every step in Python, instead of raising it.
    """

    read_waits = True

    def __init__(self, parts: Parts, nonfinite_in_row: int, record: Record | None, fall_back: bool = True) -> None:
        self.parts, self.record, self.fall_back = parts, record, fall_back
        device = parts.feed.device
        self._batches: list[Any] = []
        # In a resumed run with a lower limit, only the next step that is not finite exceeds it.
        below_limit = min(nonfinite_in_row, parts.config.training.max_nonfinite - 1)
        self._nonfinite_in_row = torch.tensor(below_limit, device=device)
        self._results = torch.zeros(parts.config.training.log_every, 2, device=device)
        self._unread = torch.zeros(1, dtype=torch.int64, device=device)  # number of results that were not read
        self._taken = 0
        self._replay: Callable[[], None] | None = None
        self._ends: deque[torch.cuda.Event] = deque()

    def run(self, step: int) -> None:
        """See :meth:`Step.run`."""
        batches = self.parts.feed.batches(step)
        if self._batches:
            for stored, batch in zip(self._batches, batches, strict=True):
                map_tensors(Tensor.copy_, stored, batch)
        else:
            self._batches = [map_tensors(Tensor.clone, batch) for batch in batches]
        self._run()
        self._taken += 1
        if self.parts.feed.device.type == "cuda":
            self._wait_for_earlier_steps()

    def read(self) -> list[Result]:
        """See :meth:`Step.read`."""
        results = self._results[: int(self._unread)].tolist()
        self._unread.zero_()
        return [(loss, norm) for loss, norm in results]

    def compute(self) -> None:
        """Take a step on the batches that :meth:`run` has copied; this is what a graph records."""
        parts, optimizer = self.parts, cast(Any, self.parts.optimizer)
        clip, limit = parts.config.optimizer.gradient_clip, parts.config.training.max_nonfinite
        loss, norm = parts.gradient(self._batches)
        usable = loss.isfinite() & norm.isfinite() & (self._nonfinite_in_row < limit)
        skipped, scale = usable.logical_not().float(), None if clip is None else (norm / clip).clamp(min=1)
        for part in cast(list[Any], parts_of(optimizer)):
            part.found_inf, part.grad_scale = skipped, scale
        optimizer.step()
        parts.ema.update_where(usable, parts.task.network)
        self._nonfinite_in_row.add_(1).masked_fill_(usable, 0)
        self._results.index_copy_(0, self._unread, torch.stack([loss, norm]).unsqueeze(0))
        self._unread.add_(1)

    def _run(self) -> None:
        if self._replay is None and self.record is not None and self._taken >= WARM_UP:
            self._replay = self._recorded(self.record)
        if self._replay is not None:
            self._replay()
        elif self.record is not None and self.parts.feed.device.type == "cuda":
            run_on_side_stream(self.compute)
        else:
            self.compute()

    def _recorded(self, record: Record) -> Callable[[], None]:
        try:
            return record(self.compute)
        except RuntimeError as error:
            reason = first_line(error)
            if not self.fall_back:
                raise UserError(f"training.cuda_graph is true, but the step cannot be recorded: {reason}") from error
            self.parts.say(f"training without a CUDA graph: the step cannot be recorded: {reason}")
            return self.compute

    def _wait_for_earlier_steps(self) -> None:
        """Wait until all but ``LEAD`` steps have ended, so that the times that the loop measures are the device's."""
        end = torch.cuda.Event(blocking=True)
        end.record()
        self._ends.append(end)
        if len(self._ends) > LEAD:
            self._ends.popleft().synchronize()


def decides_on_device(config: RunConfig, task: Task, device: torch.device) -> bool:
    """Return whether the run uses :class:`DeviceStep`."""
    return device.type == "cuda" and config.optimizer.name != "sgd" and not task.against_graph


def create_step(parts: Parts, on_device: bool, nonfinite_in_row: int) -> Step:
    """Return the step of a run; print why it is not a CUDA graph on a device that has them.

    Args:
        parts: the parts of the step.
        on_device: result of :func:`decides_on_device`.
        nonfinite_in_row: see :class:`DeviceStep`.

    Raises:
        UserError: ``training.cuda_graph`` is true, but a step cannot be recorded.
    """
    wanted, reason = parts.config.training.cuda_graph, _against_graph(parts, on_device)
    if reason and wanted is True:
        raise UserError(f"training.cuda_graph is true, but {reason}: set auto or false")
    if reason and wanted == "auto" and parts.feed.device.type == "cuda":
        parts.say(f"training without a CUDA graph: {reason}")
    if not on_device:
        return EagerStep(parts)
    record = None if reason or wanted is False else record_cuda_graph
    return DeviceStep(parts, nonfinite_in_row, record, fall_back=wanted == "auto")


def _against_graph(parts: Parts, on_device: bool) -> str:
    """Return why a step cannot be recorded, or ""."""
    if not on_device and parts.feed.device.type != "cuda":
        return f"the device is {parts.feed.device.type}, not cuda"
    if not on_device:
        return parts.task.against_graph or "optimizer.name is sgd, not adamw or muon"
    if parts.accelerator.num_processes > 1:
        return f"there are {parts.accelerator.num_processes} processes"
    if parts.config.training.gradient_checkpointing:
        return "training.gradient_checkpointing is true"
    return ""
