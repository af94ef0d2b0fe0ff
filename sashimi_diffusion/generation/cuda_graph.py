"""Generation on a GPU without Python between the kernels: a step and its sampling, recorded as a CUDA graph.

A CUDA graph replays the same kernels on the same memory. Tokens, random numbers and states are therefore in fixed
buffers, which a recorded step reads and overwrites.

The kernels of a step depend on its position, because a pooled stage runs only at the last sample of its frame. The
position is part of the integers in the model's state, so there is one recording for each combination of integers.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sashimi_diffusion.cuda_graph import record_cuda_graph
from sashimi_diffusion.generation.sampling import Sampling, sample_tokens


class CudaGraphEngine:
    """Engine that replays recorded recurrence steps of an autoregressive model.

    Args:
        model: an ``AutoregressiveModel`` in evaluation mode.
        batch_size: number of clips generated together.
        record: receives a function that works on fixed buffers, and returns a function that repeats it.
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
        """Continue from a state of the model with ``batch_size`` clips."""
        _overwrite(self._state, state)
        self._state = _with_integers(self._state, state)

    @torch.no_grad()
    def run(self, tokens: Tensor, uniforms: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor, Tensor]:
        """Generate the samples after the inputs ``tokens`` (B,), one for each column of ``uniforms`` (B, n).

        Returns:
            tokens, log-probabilities and entropies (B, n), see :func:`sample_tokens`.
        """
        self._tokens.copy_(tokens)
        uniforms = uniforms.to(self._uniforms.device)
        generated = self._tokens.new_empty(*uniforms.shape)
        log_probabilities = self._log_probabilities.new_empty(*uniforms.shape)
        entropies = self._entropies.new_empty(*uniforms.shape)
        for index, column in enumerate(uniforms.unbind(1)):
            self._uniforms.copy_(column)
            self._step(sampling)
            generated[:, index] = self._tokens
            log_probabilities[:, index] = self._log_probabilities
            entropies[:, index] = self._entropies
        return generated, log_probabilities, entropies

    def _step(self, sampling: Sampling) -> None:
        """Generate one sample, with a recording of its step."""
        key = (_integers(self._state), sampling)
        if key not in self._recorded:
            # A step before the recording compiles kernels and fills caches. It also gives the integers of the next
            # state, which a replay does not compute.
            _, next_state = self.model.step(self._tokens, self._state)
            state = self._state
            self._recorded[key] = self.record(lambda: self._step_on_buffers(state, sampling)), next_state
        replay, next_state = self._recorded[key]
        replay()
        self._state = _with_integers(self._state, next_state)

    def _step_on_buffers(self, state: Any, sampling: Sampling) -> None:
        """Compute one step and write its results to the buffers."""
        logits, next_state = self.model.step(self._tokens, state)
        tokens, log_probabilities, entropies = sample_tokens(logits, self._uniforms, sampling)
        self._tokens.copy_(tokens)
        self._log_probabilities.copy_(log_probabilities)
        self._entropies.copy_(entropies)
        _overwrite(state, next_state)


def _copied(state: Any) -> Any:
    """Return a nested tuple with copies of its tensors; in an initial state they may be views of parameters."""
    if isinstance(state, Tensor):
        return state.detach().clone(memory_format=torch.contiguous_format)
    if not isinstance(state, tuple):
        return state
    parts = map(_copied, state)
    return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)


def _overwrite(state: Any, other: Any) -> None:
    """Copy the tensors of the nested tuple ``other`` into those of ``state``."""
    if isinstance(state, Tensor):
        state.copy_(other)
    elif isinstance(state, tuple):
        for ours, theirs in zip(state, other, strict=True):
            _overwrite(ours, theirs)


def _integers(state: Any) -> tuple:
    """Return a nested tuple without its tensors."""
    if isinstance(state, Tensor):
        return ()
    return tuple(map(_integers, state)) if isinstance(state, tuple) else (state,)


def _with_integers(state: Any, other: Any) -> Any:
    """Return the tensors of ``state`` with the integers of ``other``."""
    if isinstance(state, Tensor):
        return state
    if not isinstance(state, tuple):
        return other
    parts = [_with_integers(ours, theirs) for ours, theirs in zip(state, other, strict=True)]
    return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)
