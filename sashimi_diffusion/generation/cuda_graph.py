"""Generation on a GPU without Python between the kernels: a step and the choice of the token, recorded once.

A CUDA graph replays the same kernels on the same memory. So tokens, random numbers and states live in buffers of their
own that a recorded step reads and overwrites, and there is a recording per pattern of a step: a pooled stage runs only
at the last sample of its frame, which the whole numbers in a state tell.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sashimi_diffusion.generation.sampling import Sampling, choose


def record_cuda_graph(step: Callable[[], None]) -> Callable[[], None]:
    """Record ``step`` as a CUDA graph; what is returned replays it."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        step()
    return graph.replay


class CudaGraphEngine:
    """Steps an autoregressive model by replaying recorded steps.

    Args:
        model: an ``AutoregressiveModel`` in evaluation mode.
        batch_size: clips made at once.
        record: turns a function that works on fixed buffers into one that repeats it.
    """

    def __init__(
        self,
        model: Any,
        batch_size: int,
        record: Callable[[Callable[[], None]], Callable[[], None]] = record_cuda_graph,
    ) -> None:
        self.model, self.record = model, record
        self._state = _copied(model.initial_state(batch_size))
        self._tokens = torch.zeros(batch_size, dtype=torch.int64, device=model.device)
        self._uniforms = torch.zeros(batch_size, dtype=torch.float64, device=model.device)
        self._log_probabilities, self._entropies = torch.zeros(2, batch_size, device=model.device)
        self._recorded: dict[tuple, tuple[Callable[[], None], Any]] = {}

    @torch.no_grad()
    def load(self, state: Any) -> None:
        """Go on from a state of the model, of ``batch_size`` clips."""
        _overwrite(self._state, state)
        self._state = _with_numbers(self._state, state)

    @torch.no_grad()
    def run(self, tokens: Tensor, uniforms: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor, Tensor]:
        """Make the samples after ``tokens`` (B,), one for every column of ``uniforms`` (B, n); see :func:`choose`."""
        self._tokens.copy_(tokens)
        uniforms = uniforms.to(self._uniforms.device)
        buffers = (self._tokens, self._log_probabilities, self._entropies)
        made = tuple(buffer.new_empty(*uniforms.shape) for buffer in buffers)
        for index, column in enumerate(uniforms.unbind(1)):
            self._uniforms.copy_(column)
            self._step(sampling)
            for whole, buffer in zip(made, buffers, strict=True):
                whole[:, index] = buffer
        return made

    def _step(self, sampling: Sampling) -> None:
        key = (_numbers(self._state), sampling)
        if key not in self._recorded:
            # Outside of the recording: it compiles kernels, fills caches, and tells the next state's numbers.
            _, following = self.model.step(self._tokens, self._state)
            state = self._state
            self._recorded[key] = self.record(lambda: self._on_buffers(state, sampling)), following
        repeat, following = self._recorded[key]
        repeat()
        self._state = _with_numbers(self._state, following)

    def _on_buffers(self, state: Any, sampling: Sampling) -> None:
        """One step that leaves everything it makes in the buffers."""
        logits, following = self.model.step(self._tokens, state)
        tokens, log_probabilities, entropies = choose(logits, self._uniforms, sampling)
        self._tokens.copy_(tokens)
        self._log_probabilities.copy_(log_probabilities)
        self._entropies.copy_(entropies)
        _overwrite(state, following)


def _copied(state: Any) -> Any:
    """A nested tuple with tensors of its own: those of a model's initial state may be views of its parameters."""
    if isinstance(state, Tensor):
        return state.detach().clone(memory_format=torch.contiguous_format)
    if not isinstance(state, tuple):
        return state
    parts = map(_copied, state)
    return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)


def _overwrite(state: Any, other: Any) -> None:
    """Copy the tensors of a nested tuple into those of another."""
    if isinstance(state, Tensor):
        state.copy_(other)
    elif isinstance(state, tuple):
        for ours, theirs in zip(state, other, strict=True):
            _overwrite(ours, theirs)


def _numbers(state: Any) -> tuple:
    """All of a nested tuple that is no tensor."""
    if isinstance(state, Tensor):
        return ()
    return tuple(map(_numbers, state)) if isinstance(state, tuple) else (state,)


def _with_numbers(state: Any, other: Any) -> Any:
    """The tensors of ``state`` with the numbers of ``other``."""
    if isinstance(state, Tensor):
        return state
    if not isinstance(state, tuple):
        return other
    parts = [_with_numbers(ours, theirs) for ours, theirs in zip(state, other, strict=True)]
    return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)
