"""The engine that runs the compiled step: its memory and its threads.

A stream is one of the clips that are generated together. See README.md for the algorithm and the terms.
"""

import statistics
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sashimi_diffusion.generation.numba_engine.barrier import Team, create_counters, release
from sashimi_diffusion.generation.numba_engine.memory import Memory
from sashimi_diffusion.generation.numba_engine.program import flatten
from sashimi_diffusion.generation.numba_engine.step import Block, run
from sashimi_diffusion.generation.sampling import Sampling

# Between two barriers a thread works for a few microseconds only. More threads have not been measured.
_THREADS_PER_STREAM = 2
# Samples that are generated with the same number of threads before it is chosen anew, and of a trial.
_SAMPLES, _TRIAL = 1024, 64
# After this many choices the number of threads that was slower is tried again.
_CHOICES_PER_TRIAL = 10
# The median of this many times is compared, because a single one may be that of an interruption.
_TIMES = 5


class Teamwork:
    """The choice between one thread and all threads for one stream: whichever was faster lately.

    Two threads wait for each other after every layer. How long that takes depends on the distance of their cores, and
    on other programs that run there.
    """

    def __init__(self) -> None:
        self._seconds: dict[bool, deque[float]] = {together: deque(maxlen=_TIMES) for together in (True, False)}
        self._choices = 0

    def choose(self) -> tuple[bool, int]:
        """Return whether all threads generate the next samples together, and the number of these samples."""
        for together, seconds in self._seconds.items():
            if not seconds:
                return together, _TRIAL
        self._choices += 1
        if self._choices % _CHOICES_PER_TRIAL == 0:
            return not self.together, _TRIAL
        return self.together, _SAMPLES

    @property
    def together(self) -> bool:
        """Whether all threads together were faster than one."""
        return statistics.median(self._seconds[True]) < statistics.median(self._seconds[False])

    def record(self, together: bool, seconds: float) -> None:
        """Record the time in seconds of a sample that all threads, or one, have generated."""
        self._seconds[together].append(seconds)


class NumbaEngine:
    """Engine that runs a SaShiMi model in compiled code, which Python enters once per block of samples.

    Two threads share one stream if that is faster: each computes half of the features, and they meet at spin barriers.
    Several streams are divided among all threads.

    Args:
        model: a ``SashimiAutoregressive`` in float32 on the CPU, in evaluation mode.
        batch_size: number of clips generated together.
        threads: number of threads; None for ``torch.get_num_threads()``.
        weights: format of the weights of the linear maps in memory: "float32", "bfloat16", "int16" or "int8"; see
            README.md. Everything is computed in float32.
    """

    def __init__(self, model: Any, batch_size: int, threads: int | None = None, weights: str = "float32") -> None:
        self.model, self.batch_size = model, batch_size
        threads = torch.get_num_threads() if threads is None else threads
        self.threads = min(threads, _THREADS_PER_STREAM if batch_size == 1 else batch_size)
        # One stream always has the same number of shards, so that its clip does not depend on the number of threads.
        self.program, self.layout = flatten(model, _THREADS_PER_STREAM if batch_size == 1 else 1, weights)
        bounds = (
            [0, 1] if batch_size == 1 else np.linspace(0, batch_size, self.threads + 1).round().astype(int).tolist()
        )
        self._parts = [slice(first, last) for first, last in pairwise(bounds)]
        self._memory = [Memory.allocate(self.program, self.layout, part.stop - part.start) for part in self._parts]
        self._position = self._loaded_at = 0  # samples processed so far, and when a state was loaded
        self._teamwork = Teamwork()
        self._compiled = False

    def load(self, state: Any) -> None:
        """Continue from a state of the model with ``batch_size`` clips."""
        self._position = self._loaded_at = state.position
        for memory, streams in zip(self._memory, self._parts, strict=True):
            memory.load(self.layout, state, streams)

    def run(self, tokens: Tensor, uniforms: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor, Tensor]:
        """Generate the samples after the inputs ``tokens`` (B,), one for each column of ``uniforms`` (B, n).

        Returns:
            tokens, log-probabilities and entropies (B, n), see :func:`sample_tokens`.
        """
        numbers = uniforms.numpy()
        block = Block(
            tokens.numpy().copy(),
            numbers,
            float(sampling.temperature),
            sampling.top_k or 0,
            float(sampling.top_p),
            np.empty(numbers.shape, np.int64),
            np.empty(numbers.shape, np.float32),
            np.empty(numbers.shape, np.float32),
        )
        if self.batch_size > 1 or self.threads == 1:
            self._run_divided(block)
        else:
            self._run_shared(block)
        return (
            torch.from_numpy(block.tokens),
            torch.from_numpy(block.log_probabilities),
            torch.from_numpy(block.entropies),
        )

    def _run_divided(self, block: Block) -> None:
        """Generate a block with the streams divided among the threads."""
        with ThreadPoolExecutor(self.threads) as pool:
            calls = [
                pool.submit(self._run_alone, part, block.streams(streams)) for part, streams in enumerate(self._parts)
            ]
            for call in calls:
                call.result()
        self._position += block.uniforms.shape[1]

    def _run_shared(self, block: Block) -> None:
        """Generate a block of one stream, with all threads or with one."""
        if not self._compiled:
            # Compile in one thread, without samples. With two, one would spin at the first barrier during compilation.
            self._run_alone(0, block._replace(inputs=block.inputs.copy()).samples(slice(0)))
            self._compiled = True
        done, count = 0, block.uniforms.shape[1]
        while done < count:
            together, samples = self._teamwork.choose()
            part = block.samples(slice(done, done + samples))
            started = time.perf_counter()
            generated = self._run_together(part) if together else self._run_alone(0, part)
            self._teamwork.record(together, (time.perf_counter() - started) / generated)
            done += generated
            self._position += generated

    def _run_together(self, block: Block) -> int:
        """Generate a block with all threads and return how many samples they generated before they separated."""
        counters = create_counters(self.threads)
        with ThreadPoolExecutor(self.threads) as pool:
            try:
                teams = [Team(counters, thread, self.threads) for thread in range(self.threads)]
                others = [pool.submit(self._run_as, 0, block, team) for team in teams[1:]]
                generated = self._run_as(0, block, teams[0])
            except BaseException:
                release(counters)  # otherwise the other threads would wait for this one
                raise
            for other in others:
                other.result()
        return generated

    def _run_alone(self, part: int, block: Block) -> int:
        return self._run_as(part, block, Team(create_counters(1), 0, 1))

    def _run_as(self, part: int, block: Block, team: Team) -> int:
        """Generate a block of a part of the streams, as one thread of a team; return the number of samples."""
        return run(self.program, self._memory[part], block, self._position, self._loaded_at, team)
