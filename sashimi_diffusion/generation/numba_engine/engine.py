"""The engine that runs the compiled step: its memory, its threads, and the way in from a model's state."""

import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sashimi_diffusion.generation.numba_engine.barrier import counters_size, release
from sashimi_diffusion.generation.numba_engine.program import Kind, Program, by_vector, flatten
from sashimi_diffusion.generation.numba_engine.spans import TOGETHER
from sashimi_diffusion.generation.numba_engine.step import run
from sashimi_diffusion.generation.numba_engine.vectors import LANES, aligned_zeros, whole_vectors
from sashimi_diffusion.generation.sampling import Sampling

# Their shares are a few microseconds long between two barriers: more threads have not been measured.
_THREADS_PER_STREAM = 2
# Once they have parted, one thread goes on alone for so many times as long as the attempt to share has taken.
_TIMES_ALONE = 10
# Samples that it makes until it looks at the clock again.
_SAMPLES_ALONE = 64


class _Memory(NamedTuple):
    """What a step of some streams works on; all but the states and the spans have a row per stream.

    Args:
        states, spans, partials: shared by the threads.
        buffers, x, normed, hidden, scratch: one of each thread's own.
    """

    states: np.ndarray
    spans: np.ndarray
    partials: np.ndarray
    buffers: np.ndarray
    x: np.ndarray
    normed: np.ndarray
    hidden: np.ndarray
    scratch: np.ndarray

    @classmethod
    def of(cls, program: Program, n_streams: int) -> "_Memory":
        """At rest."""
        shares, between = program.shares, _largest_between(program)
        widths = whole_vectors(program.widths)
        most_states = max(
            (int(row[6]) for row in program.operations if row[0] in (Kind.S4_NPLR, Kind.S4_DIAGONAL)), default=0
        )
        return cls(
            aligned_zeros(n_streams * program.state_size),
            aligned_zeros(n_streams * program.span_size),
            aligned_zeros(2, shares, n_streams, between),
            aligned_zeros(shares, n_streams, whole_vectors(program.buffer_size)),
            aligned_zeros(shares, n_streams, int(widths.sum())),
            aligned_zeros(shares, n_streams, int(widths.max())),
            aligned_zeros(shares, n_streams, between),
            aligned_zeros(shares, TOGETHER * 2 * LANES * most_states),
        )

    def load(self, program: Program, state: Any, streams: slice) -> None:
        """Take over some streams of a ``BackboneState``."""
        n_streams = self.x.shape[1]
        for layer, offset in zip(state.layers, program.s4_offsets, strict=True):
            parts = torch.view_as_real(layer[streams]).permute(0, 3, 1, 2)  # (B, 2, H, N)
            values = torch.stack([by_vector(of_stream) for of_stream in parts], dim=1)  # (vectors, B, N, 2, LANES)
            begin = offset * n_streams
            self.states[begin : begin + values.numel()] = values.flatten().numpy()
        for frames, offsets in (
            (state.frames, program.frame_offsets),
            (state.upsampled, program.upsampled_offsets),
        ):
            for frame, offset in zip(frames, offsets, strict=True):
                self.buffers[0, :, offset : offset + frame[0].numel()] = frame[streams].flatten(1).numpy()


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
        threads = torch.get_num_threads() if threads is None else threads
        self.threads = min(threads, _THREADS_PER_STREAM if batch_size == 1 else batch_size)
        # Always as many shares for one stream, so that its clip does not depend on the number of threads.
        self.program = flatten(model, _THREADS_PER_STREAM if batch_size == 1 else 1)
        self._starts = np.concatenate([[0], np.cumsum(whole_vectors(self.program.widths))[:-1]])
        self._strides = np.cumprod([1, *self.program.pools])
        bounds = (
            [0, 1] if batch_size == 1 else np.linspace(0, batch_size, self.threads + 1).round().astype(int).tolist()
        )
        self._parts = [slice(first, last) for first, last in pairwise(bounds)]
        self._memory = [_Memory.of(self.program, part.stop - part.start) for part in self._parts]
        self._position = self._loaded_at = 0
        self._alone_until = 0.0

    def load(self, state: Any) -> None:
        """Go on from a state of the model, of ``batch_size`` clips."""
        self._position = self._loaded_at = state.position
        for memory, streams in zip(self._memory, self._parts, strict=True):
            memory.load(self.program, state, streams)

    def run(self, tokens: Tensor, uniforms: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor, Tensor]:
        """Make the samples after ``tokens`` (B,), one for every column of ``uniforms`` (B, n).

        Returns:
            tokens (B, n), and their log-probabilities and entropies (B, n), see :func:`choose`.
        """
        numbers = uniforms.numpy()
        made = (
            np.empty(numbers.shape, np.int64),
            np.empty(numbers.shape, np.float32),
            np.empty(numbers.shape, np.float32),
        )
        inputs = tokens.numpy().copy()
        settings = np.array([sampling.temperature, sampling.top_k or 0, sampling.top_p])
        if self.batch_size > 1 or self.threads == 1:
            self._run_apart(inputs, numbers, settings, made)
        else:
            self._run_shared(inputs, numbers, settings, made)
        return tuple(torch.from_numpy(whole) for whole in made)

    def _run_apart(self, inputs: np.ndarray, numbers: np.ndarray, settings: np.ndarray, made: tuple) -> None:
        """Every thread has streams of its own."""
        with ThreadPoolExecutor(self.threads) as pool:
            calls = [
                pool.submit(self._work, part, inputs[streams], numbers[streams], settings, [m[streams] for m in made])
                for part, streams in enumerate(self._parts)
            ]
            for call in calls:
                call.result()
        self._position += numbers.shape[1]

    def _run_shared(self, inputs: np.ndarray, numbers: np.ndarray, settings: np.ndarray, made: tuple) -> None:
        """All threads share the one stream, as long as each of them has a core; the first alone otherwise."""
        if not run.signatures:
            # Compiled by one thread: the other would already spin at the first barrier.
            self._work(0, inputs.copy(), numbers[:, :0], settings, [m[:, :0] for m in made])
        done, count = 0, numbers.shape[1]
        while done < count:
            started = time.monotonic()
            together = started >= self._alone_until
            part = slice(done, None if together else done + _SAMPLES_ALONE)
            rest = inputs, numbers[:, part], settings, [m[:, part] for m in made]
            step = self._together(*rest) if together else self._work(0, *rest)
            done += step
            self._position += step
            if done < count and together:
                ended = time.monotonic()
                self._alone_until = ended + _TIMES_ALONE * (ended - started)

    def _together(self, *rest: Any) -> int:
        """Have all threads make the rest of a stream; returns how many samples they made before they parted."""
        counters = np.zeros(counters_size(self.threads), dtype=np.int64)
        with ThreadPoolExecutor(self.threads) as pool:
            try:
                others = [pool.submit(self._work, 0, *rest, counters, thread) for thread in range(1, self.threads)]
                made = self._work(0, *rest, counters, 0)
            except BaseException:
                release(counters)  # the others wait for a thread that will not come
                raise
            for other in others:
                other.result()
        return made

    def _work(
        self,
        part: int,
        inputs: np.ndarray,
        numbers: np.ndarray,
        settings: np.ndarray,
        made: list[np.ndarray],
        counters: np.ndarray | None = None,
        thread: int = 0,
    ) -> int:
        """One thread's part: alone without ``counters``, and as one of all threads with them."""
        program, alone = self.program, counters is None
        return run(
            program.operations,
            program.weights,
            program.widths,
            self._starts,
            self._strides,
            program.num_tokens,
            program.embedding,
            program.head,
            self._position,
            self._loaded_at,
            *self._memory[part],
            inputs,
            numbers,
            settings,
            *made,
            np.zeros(counters_size(1), dtype=np.int64) if alone else counters,
            thread,
            1 if alone else self.threads,
        )


def _largest_between(program: Program) -> int:
    """Numbers between two maps: an S4 layer's output and gates, a feed-forward layer's inside, an up pool's, logits."""
    sizes = [program.num_tokens, 3 * int(whole_vectors(program.widths).max())]
    sizes += [int(max(row[6], row[2] * row[7])) for row in program.operations]
    return whole_vectors(max(sizes))
