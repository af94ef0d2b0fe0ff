"""Generation on a GPU without Python between the kernels: steps and their sampling, recorded as CUDA graphs.

A CUDA graph replays the same kernels on the same memory. Tokens, random numbers, scores and states are therefore in
fixed buffers, which a replay reads and overwrites.

The kernels of a step depend on its position, because a pooled stage runs only at the last sample of its frame. The
position is part of the integers in the model's state. One replay generates a span of samples from the integers of the
initial state on, after which they usually return. Other samples, before and after the spans, have a recording for each
combination of integers.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sashimi_diffusion.cuda_graph import record_cuda_graph
from sashimi_diffusion.generation.sampling import Sampling, score_tokens, select_tokens
from sashimi_diffusion.ssm import frozen
from sashimi_diffusion.ssm.cache import kept_values

SHORTEST_SPAN, LONGEST_SPAN = 16, 256
"""Numbers of samples in a span. The longest one limits the size of the recording and the time to record it."""


class Recording(NamedTuple):
    """Recorded steps that generate the next n samples.

    Args:
        uniforms: input, float64 (B, n).
        outputs: tokens, int64, log-probabilities and entropies, float32, all (B, n).
        replay: runs the steps.
        next_state: a state with the integers after the steps.
        kept: values that depend only on the parameters and that the steps read; the recording keeps their memory.
    """

    uniforms: Tensor
    outputs: tuple[Tensor, Tensor, Tensor]
    replay: Callable[[], None]
    next_state: Any
    kept: list[Any]


class CudaGraphEngine:
    """Engine that replays recorded recurrence steps of an autoregressive model.

    Args:
        model: an ``AutoregressiveModel`` in evaluation mode. Its parameters must not change while the engine is used.
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
        self._start = _integers(self._state)
        self._tokens = torch.zeros(batch_size, dtype=torch.int64, device=model.device)
        multiple = model.length_multiple  # the integers of the models in this package return after so many samples
        self._span = 1 if multiple > LONGEST_SPAN else -(-SHORTEST_SPAN // multiple) * multiple
        self._recorded: dict[tuple, Recording] = {}

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
        device, length = self._tokens.device, uniforms.shape[1]
        if device.type == "cuda" and uniforms.device.type == "cpu":
            uniforms = uniforms.pin_memory()  # a copy from other memory waits for the device
        uniforms = uniforms.to(device, non_blocking=True)
        generated = self._tokens.new_empty(uniforms.shape)
        log_probabilities, entropies = torch.empty(2, *uniforms.shape, device=device)
        done = 0
        with frozen(self.model):
            while done < length:
                aligned = _integers(self._state) == self._start
                samples = self._span if aligned and length - done >= self._span else 1
                span = slice(done, done + samples)
                recording = self._recording(uniforms[:, span], sampling)
                recording.uniforms.copy_(uniforms[:, span])
                recording.replay()
                for whole, part in zip((generated, log_probabilities, entropies), recording.outputs, strict=True):
                    whole[:, span] = part
                self._state = _with_integers(self._state, recording.next_state)
                done += samples
        return generated, log_probabilities, entropies

    def _recording(self, uniforms: Tensor, sampling: Sampling) -> Recording:
        """Return the recording of the steps for as many random numbers, (B, n), from the current integers."""
        key = (_integers(self._state), uniforms.shape[1], sampling)
        if key not in self._recorded:
            self._recorded[key] = self._new_recording(uniforms.clone(), sampling)
        return self._recorded[key]

    def _new_recording(self, uniforms: Tensor, sampling: Sampling) -> Recording:
        state = self._state
        # Steps before the recording compile kernels and compute the values that the frozen model keeps. They also give
        # the integers after the steps, which a replay does not compute.
        next_state = state
        for _ in range(uniforms.shape[1]):
            _, next_state = self.model.step(self._tokens, next_state)
        log_probabilities, entropies = torch.zeros(2, *uniforms.shape, device=uniforms.device)
        outputs = (torch.zeros_like(uniforms, dtype=torch.int64), log_probabilities, entropies)
        with torch.cuda.device_of(uniforms):  # the recording is made on the current device
            replay = self.record(lambda: self._steps(state, uniforms, sampling, outputs))
        return Recording(uniforms, outputs, replay, next_state, kept_values(self.model))

    def _steps(self, state: Any, uniforms: Tensor, sampling: Sampling, outputs: tuple[Tensor, Tensor, Tensor]) -> None:
        """Generate a sample for each column of ``uniforms`` and write all results to the buffers."""
        tokens, next_state = self._tokens, state
        all_tokens, all_logits = [], []
        for column in uniforms.unbind(1):
            logits, next_state = self.model.step(tokens, next_state)
            tokens = select_tokens(logits, column, sampling)
            all_tokens.append(tokens)
            all_logits.append(logits)
        generated = torch.stack(all_tokens, 1)  # (B, n)
        scores = score_tokens(torch.stack(all_logits, 1), generated)
        for buffer, values in zip(outputs, (generated, *scores), strict=True):
            buffer.copy_(values)
        self._tokens.copy_(tokens)
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
