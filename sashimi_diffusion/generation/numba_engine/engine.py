"""The engine that runs the compiled step: its memory, its threads, and the way in from a model's state."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sashimi_diffusion.generation.numba_engine.barrier import counters_size
from sashimi_diffusion.generation.numba_engine.program import Program, flatten
from sashimi_diffusion.generation.numba_engine.step import run
from sashimi_diffusion.generation.sampling import Sampling

# More threads on one stream wait longer for each other than they save.
_THREADS_PER_STREAM = 2


class _Memory(NamedTuple):
    """What a step works on, a row per stream."""

    states: np.ndarray
    buffers: np.ndarray
    x: np.ndarray
    hidden: np.ndarray
    logits: np.ndarray


class NumbaEngine:
    """Steps a SaShiMi model in compiled code that Python enters once per block of samples.

    One stream is shared by two threads, each with half of the features, which meet at spin barriers; several streams
    are divided over all threads.

    Args:
        model: a ``SashimiAutoregressive`` in float32 on the CPU, in evaluation mode.
        batch_size: clips made at once.
        threads: None for ``torch.get_num_threads()``.
    """

    def __init__(self, model: Any, batch_size: int, threads: int | None = None) -> None:
        self.model, self.batch_size = model, batch_size
        self.program = flatten(model)
        threads = torch.get_num_threads() if threads is None else threads
        self.threads = min(threads, _THREADS_PER_STREAM if batch_size == 1 else batch_size)
        program, widths = self.program, self.program.widths
        self._starts = np.concatenate([[0], np.cumsum(widths)])
        self._strides = np.cumprod([1, *program.pools])
        self._memory = _Memory(
            *(
                np.zeros((batch_size, size), dtype=np.float32)
                for size in (
                    program.state_size,
                    program.buffer_size,
                    self._starts[-1],
                    _largest_hidden(program),
                    program.num_tokens,
                )
            )
        )
        self._position = 0

    @torch.no_grad()
    def prefill(self, tokens: Tensor) -> Tensor:
        """Absorb inputs (B, L) in one pass of the model: logits (B, num_tokens, L)."""
        logits, state = self.model.prefill(tokens)
        self._load(state)
        return logits

    def run(self, tokens: Tensor, uniforms: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor, Tensor]:
        """Make the samples after ``tokens`` (B,), one for every column of ``uniforms`` (B, n).

        Returns:
            tokens (B, n), and their log-probabilities and entropies (B, n), see :func:`choose`.
        """
        numbers = uniforms.numpy()
        made = (np.empty(numbers.shape, np.int64), np.empty(numbers.shape, np.float32), np.empty(numbers.shape, np.float32))
        inputs = tokens.numpy().copy()
        settings = np.array([sampling.temperature, sampling.top_k or 0, sampling.top_p])
        counters = np.zeros(counters_size(self.threads), dtype=np.int64)
        parts = self._parts()

        def work(thread: int) -> None:
            program, streams = self.program, parts[thread]
            sharing = self.batch_size == 1
            run(
                program.operations,
                program.weights,
                self._starts,
                self._strides,
                program.embedding,
                program.head,
                self._position,
                *(memory[streams] for memory in self._memory),
                inputs[streams],
                numbers[streams],
                settings,
                *(whole[streams] for whole in made),
                counters,
                thread if sharing else 0,
                self.threads if sharing else 1,
            )

        if self.threads > 1 and not run.signatures:
            # Compiled by one thread: the other would already spin at the first barrier.
            self._compile()
        with ThreadPoolExecutor(self.threads) as pool:
            list(pool.map(work, range(self.threads)))
        self._position = (self._position + numbers.shape[1]) % int(self._strides[-1])
        return tuple(torch.from_numpy(whole) for whole in made)

    def _parts(self) -> list[slice]:
        """The streams of each thread."""
        if self.batch_size == 1:
            return [slice(0, 1)] * self.threads
        bounds = np.linspace(0, self.batch_size, self.threads + 1).round().astype(int)
        return [slice(first, last) for first, last in zip(bounds, bounds[1:], strict=False)]

    def _compile(self) -> None:
        """Have the step compiled (or read from numba's cache) for the types it is called with, making no sample."""
        once, none = NumbaEngine(self.model, 1, threads=1), torch.empty(1, 0, dtype=torch.float64)
        once.run(torch.zeros(1, dtype=torch.int64), none, Sampling())

    def _load(self, state: Any) -> None:
        """Take over a ``BackboneState``."""
        program, memory = self.program, self._memory
        self._position = state.position
        for layer, offset, (h, n) in zip(state.layers, program.s4_offsets, program.s4_shapes, strict=True):
            values = torch.stack([layer.real, layer.imag], dim=1)  # (B, 2, H, N)
            memory.states[:, offset : offset + 2 * h * n] = values.flatten(1).numpy()
        for frame, offset in zip(state.frames, program.frame_offsets, strict=True):
            memory.buffers[:, offset : offset + frame[0].numel()] = frame.flatten(1).numpy()
        for upsampled, offset in zip(state.upsampled, program.upsampled_offsets, strict=True):
            memory.buffers[:, offset : offset + upsampled[0].numel()] = upsampled.flatten(1).numpy()


def _largest_hidden(program: Program) -> int:
    """Floats between two maps: an S4 layer's output and gates, a feed-forward layer's inside, an up pool's output."""
    sizes = [3 * int(program.widths.max())]
    sizes += [int(max(row[6], row[2] * row[7])) for row in program.operations]
    return max(sizes)
