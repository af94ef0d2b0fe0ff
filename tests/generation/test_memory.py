"""Tests of the estimated memory of generation against the memory of states and clips."""

import re
from collections.abc import Callable
from itertools import accumulate
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.generation import generate, stream
from sashimi_diffusion.generation.generate import PREFILL_CHUNK, check_memory, prefill, state_bytes
from sashimi_diffusion.models import AutoregressiveModel, SampleRNN, SashimiAutoregressive, WaveNetAutoregressive

WAVENET = {"residual_channels": 4, "dilation_channels": 4, "skip_channels": 8, "end_channels": 8, "n_layers": 3}
NETWORKS: dict[str, tuple[type[AutoregressiveModel], dict[str, Any]]] = {
    "sashimi": (SashimiAutoregressive, {"d_model": 8, "n_layers": 2, "n_state": 4, "pool": [2, 3]}),
    "wavenet": (WaveNetAutoregressive, WAVENET),
    "samplernn": (SampleRNN, {"dim": 8, "embedding_dim": 4, "frame_sizes": [2, 2]}),
}


def small_model(name: str) -> AutoregressiveModel:
    torch.manual_seed(0)
    kind, options = NETWORKS[name]
    return kind(**options).eval()


def storages(state: Any) -> dict[int, int]:
    """Return the memory that a nested tuple keeps alive, in bytes by address."""
    if isinstance(state, Tensor):
        storage = state.untyped_storage()
        return {storage.data_ptr(): storage.nbytes()}
    parts = map(storages, state) if isinstance(state, tuple) else ()
    return {address: size for part in parts for address, size in part.items()}


def peak(call: Callable[[], object]) -> int:
    """Return the peak memory of ``call`` in bytes."""
    with torch.profiler.profile(profile_memory=True) as recorded:
        call()
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


@pytest.fixture
def estimate(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Return a function that returns the smallest free memory in bytes that ``check_memory`` accepts."""

    def fits(free: int, *arguments: Any) -> bool:
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=free))
        try:
            check_memory(*arguments)
        except UserError:
            return False
        return True

    def bisect(*arguments: Any) -> int:
        low, high = 0, 2**40
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if fits(middle, *arguments) else (middle + 1, high)
        return low

    return bisect


@pytest.mark.parametrize("name", NETWORKS)
def test_the_size_of_a_state_is_the_memory_it_keeps_alive(name: str) -> None:
    model, tokens = small_model(name), torch.full((3, 50), 7)
    with torch.no_grad():
        _, prefilled = model.prefill(tokens)
        _, stepped = model.step(tokens[:, 0], prefilled)
    for state in (prefilled, stepped):
        assert state_bytes(state) == sum(storages(state).values())
        assert state_bytes(state) == 3 * state_bytes(model.initial_state(1))


def test_only_tensors_have_a_size() -> None:
    assert state_bytes((3, None, (), (torch.zeros(2, 3), torch.zeros(4, dtype=torch.complex64)))) == 24 + 32


@pytest.mark.parametrize("name", NETWORKS)
def test_estimates_are_close_to_the_actual_sizes(name: str, estimate: Callable[..., int]) -> None:
    model = small_model(name)
    state = sum(storages(model.prefill(torch.full((2, 50), 7))[1]).values())
    made = sum(storages(tuple(generate(model, 1000, 2, engine="eager"))[:3]).values())
    of_states = estimate(model, 2, 0, 0)
    assert 2 * state <= of_states <= 4 * state  # the states before and after a step exist at the same time
    assert made <= estimate(model, 2, 1000, 0) - of_states <= 4 * made
    prefilled = peak(lambda: prefill(model, torch.full((2, 1000), 7)))
    assert prefilled <= estimate(model, 2, 0, 1000) - of_states <= 4 * prefilled


def test_a_prefix_in_chunks_needs_the_memory_of_a_chunk() -> None:
    model, tokens = small_model("sashimi"), torch.full((1, 6000), 7)
    result = tokens.numel() * (4 + 4)
    of_chunk = peak(lambda: prefill(model, tokens[:, :600], 600))
    assert peak(lambda: prefill(model, tokens, 600)) < 2 * of_chunk + 2 * result
    assert peak(lambda: prefill(model, tokens)) > 4 * of_chunk + 2 * result


def test_the_estimate_of_a_prefix_stops_growing_at_one_chunk(estimate: Callable[..., int]) -> None:
    model, clip = small_model("sashimi"), 10**6
    less, chunk, more = (estimate(model, 1, clip, length) for length in (PREFILL_CHUNK - 1, PREFILL_CHUNK, clip - 1))
    assert less < chunk == more
    assert estimate(model, 1, 0, 2 * PREFILL_CHUNK) > estimate(
        model, 1, 0, PREFILL_CHUNK
    )  # a stream without end keeps its prefix


def test_estimates_grow_with_batch_length_and_prefix(estimate: Callable[..., int]) -> None:
    model = small_model("sashimi")
    one = estimate(model, 1, 1000, 100)
    assert estimate(model, 5, 1000, 100) == 5 * one
    lengths = [estimate(model, 1, length, 0) for length in (0, 1, 1000, 10**6)]
    prefixes = [estimate(model, 1, 1000, length) for length in (0, 1, 100, 10_000)]
    for grown in (lengths, prefixes):
        assert grown == sorted(set(grown))
    assert estimate(small_model("wavenet"), 1, 0, 0) != lengths[0]


def test_clips_that_do_not_fit_are_refused_before_the_first_sample() -> None:
    model = small_model("sashimi")
    for call in (generate, stream):
        with pytest.raises(UserError) as caught:
            call(model, 10**13, batch_size=3, engine="eager")
        # Unlike "$", "\Z" does not match before a final line break.
        expected = r"3 clips of 10{13} samples need about [\d.]+ GB, [\d.]+ GB are free: [^\n]*shorter ones\Z"
        assert re.match(expected, str(caught.value))


def test_states_that_do_not_fit_are_refused_for_every_length(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model("sashimi")
    needed = 4 * state_bytes(model.initial_state(1))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=100 * needed))
    next(stream(model, None, 10, batch_size=100, engine="eager"))
    with pytest.raises(UserError, match=r"^101 clips"):
        stream(model, None, 10, batch_size=101, engine="eager")


def test_on_a_gpu_the_memory_of_the_gpu_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10**6, 10**12))
    config = SimpleNamespace(num_tokens=256)
    model = SimpleNamespace(
        device="cuda",
        config=config,
        parameters=list,
        initial_state=lambda batch_size: torch.zeros(batch_size, 100),
    )
    check_memory(model, 1, 1000, 0)
    with pytest.raises(UserError, match=r"^1 clips of 100000 samples need about 0\.0 GB, 0\.0 GB are free"):
        check_memory(model, 1, 100_000, 0)
