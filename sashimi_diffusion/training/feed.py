"""The batches of the optimizer steps, which threads prepare ahead for a GPU."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from sashimi_diffusion.training.task import Task

THREADS = 2
STEPS_AHEAD = 4


class Feed:
    """Source of the batches of one process.

    On a CPU, a batch is prepared when it is needed. For another device, threads prepare the batches of the next steps
    in pinned memory, from where they are copied without waiting.

    Args:
        task: the kind of run.
        parts: positions of the examples of each accumulation step in the global batch.
        global_batch: number of examples in the global batch.
        device: device of the batches.
        steps_ahead: number of steps for which threads prepare batches; 0: no threads. None: 0, or STEPS_AHEAD on CUDA.
    """

    def __init__(
        self, task: Task, parts: list[range], global_batch: int, device: torch.device, steps_ahead: int | None = None
    ) -> None:
        self.task, self.parts, self.global_batch, self.device = task, parts, global_batch, device
        on_cuda = device.type == "cuda"
        self.steps_ahead = STEPS_AHEAD * on_cuda if steps_ahead is None else steps_ahead
        self._pool = ThreadPoolExecutor(THREADS, "batches") if self.steps_ahead else None
        self._pin = on_cuda
        self._prepared: dict[int, list[Future]] = {}  # by step

    def batches(self, step: int) -> Iterator[Any]:
        """Yield the arguments of :meth:`Task.loss` for each accumulation step of an optimizer step.

        Raises:
            Exception: what the preparation of a batch raised, also if a thread prepared it.
        """
        for positions, batch in zip(self.parts, self._batches(step), strict=True):
            moved = map_tensors(lambda tensor: tensor.to(self.device, non_blocking=True), batch)
            yield self.task.complete(moved, step, positions, self.global_batch)

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _batches(self, step: int) -> Iterable[Any]:
        if self._pool is None:
            return (self._prepare(step, positions) for positions in self.parts)
        for later in range(step, step + self.steps_ahead + 1):
            if later not in self._prepared:
                self._prepared[later] = [self._pool.submit(self._prepare, later, part) for part in self.parts]
        return [future.result() for future in self._prepared.pop(step)]

    def _prepare(self, step: int, positions: range) -> Any:
        batch = self.task.batch(step, positions, self.global_batch)
        return map_tensors(Tensor.pin_memory, batch) if self._pin else batch


def map_tensors(function: Callable[..., Tensor], batch: Any, *others: Any) -> Any:
    """Return a copy of a dataclass with the results of ``function`` in the place of its tensors.

    Args:
        function: receives a tensor of ``batch`` and the fields of the same name of ``others``.
        batch: a dataclass; its other fields are kept.
        others: dataclasses of the same class.
    """
    names = [field.name for field in dataclasses.fields(batch) if isinstance(getattr(batch, field.name), Tensor)]
    changed = {name: function(*(getattr(part, name) for part in (batch, *others))) for name in names}
    return dataclasses.replace(batch, **changed)
