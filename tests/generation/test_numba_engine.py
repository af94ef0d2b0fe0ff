"""Tests of the numba engine against the steps of the model."""

import os

import pytest
import torch

from sashimi_diffusion.benchmarks.weights import compare, log_probabilities, with_rounded_weights
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.generation import WEIGHTS, Sampling, create_engine, generate
from sashimi_diffusion.generation.engines import EagerEngine
from sashimi_diffusion.models import SashimiAutoregressive

pytest.importorskip("numba", reason="numba is not installed (pip install numba)")

from sashimi_diffusion.generation.numba_engine import NumbaEngine
from sashimi_diffusion.generation.numba_engine.arithmetic import erf, sigmoid
from sashimi_diffusion.generation.numba_engine.engine import Teamwork
from sashimi_diffusion.generation.numba_engine.linear_maps import WEIGHTS as FORMATS
from sashimi_diffusion.generation.numba_engine.linear_maps import rounded

S4D = {"parameterization": "diag", "initialization": "lin", "discretization": "zoh"}
NETWORKS = {
    "snet": {},
    "unet": {"unet": True},
    "unet-s4d-layer-norm": {"unet": True, "norm": "layer", **S4D},
    "uneven-stages": {"unet": True, "n_layers": [0, 2, 1]},
    "other-pools": {"pool": [2, 3], "n_layers": 1},
    "one-rate": {"pool": []},
    "no-feed-forward": {"ff": 0},
    "tied": {"n_ssm": 1},
    "odd-sizes": {"d_model": 12, "n_state": 6, "num_tokens": 16, "ff": 3},
}
SAMPLINGS = [Sampling(), Sampling(temperature=0.0), Sampling(temperature=0.8, top_k=7, top_p=0.9)]


def small_model(**options) -> SashimiAutoregressive:
    torch.manual_seed(0)
    sizes = {"num_tokens": 32, "d_model": 16, "n_layers": 2, "n_state": 8}
    model = SashimiAutoregressive(**{**sizes, **options}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def assert_same(actual: tuple[torch.Tensor, ...], expected: tuple[torch.Tensor, ...]) -> None:
    """Assert that tokens are equal, and log-probabilities and entropies are close."""
    assert torch.equal(actual[0], expected[0])
    for got, wanted in zip(actual[1:], expected[1:], strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("streams", [1, 3, 9])
@pytest.mark.parametrize("options", NETWORKS.values(), ids=NETWORKS)
def test_samples_match_the_eager_engine(options: dict, streams: int, threads: int) -> None:
    model = small_model(**options)
    eager, compiled = EagerEngine(model, streams), NumbaEngine(model, streams, threads)
    prefix = torch.randint(model.config.num_tokens, (streams, 37))  # ends inside of a frame
    with torch.no_grad():
        _, state = model.prefill(prefix)
    for engine in (compiled, eager):
        engine.load(state)
    tokens = prefix[:, -1]
    for sampling in SAMPLINGS:
        uniforms = torch.rand(streams, 40, dtype=torch.float64)
        expected, actual = eager.run(tokens, uniforms, sampling), compiled.run(tokens, uniforms, sampling)
        assert_same(actual, expected)
        tokens = expected[0][:, -1]


@pytest.mark.parametrize("samples", [1, 15, 16, 17])
def test_a_state_may_be_loaded_inside_of_a_span_and_of_a_frame(samples: int) -> None:
    """States are updated once per span of 16 samples; loading discards the samples of an unfinished span."""
    model = small_model(unet=True)
    eager, compiled = EagerEngine(model, 2), NumbaEngine(model, 2)
    tokens, uniforms = torch.tensor([3, 16]), torch.rand(2, 50, dtype=torch.float64)
    compiled.run(tokens, uniforms[:, :samples], Sampling())
    with torch.no_grad():
        _, state = model.prefill(torch.randint(32, (2, 5)))
    for engine in (compiled, eager):
        engine.load(state)
    assert_same(compiled.run(tokens, uniforms, Sampling()), eager.run(tokens, uniforms, Sampling()))


def test_clips_match_the_eager_engine() -> None:
    model = small_model(unet=True)

    def clip(engine: str) -> torch.Tensor:
        return generate(model, 200, 2, generator=torch.Generator().manual_seed(3), engine=engine).tokens

    assert torch.equal(clip("numba"), clip("eager"))


# Numba compiles the step for each format.
@pytest.mark.parametrize(
    "weights", ["int16", pytest.param("bfloat16", marks=pytest.mark.slow), pytest.param("int8", marks=pytest.mark.slow)]
)
def test_weights_of_fewer_bytes_are_those_of_a_rounded_model(weights: str) -> None:
    for options in ({"unet": True}, {"d_model": 12, "n_state": 6, "num_tokens": 16, "ff": 3, "unet": True}):
        model = small_model(**options)
        rounded_model = with_rounded_weights(model, weights)
        for streams, threads in ((1, 1), (1, 2), (9, 2)):
            compiled = NumbaEngine(model, streams, threads, weights)
            tokens, uniforms = torch.full((streams,), 3), torch.rand(streams, 40, dtype=torch.float64)
            expected = EagerEngine(rounded_model, streams).run(tokens, uniforms, Sampling())
            assert_same(compiled.run(tokens, uniforms, Sampling()), expected)


@pytest.mark.parametrize(("weights", "error"), [("bfloat16", 2**-8), ("int16", 2**-16), ("int8", 2**-8)])
def test_formats_round_to_nearest(weights: str, error: float) -> None:
    """bfloat16 is accurate relative to each weight, integers relative to the largest weight of an output."""
    weight = torch.randn(5, 7).numpy()
    weight[2] = 0
    scale = abs(weight) if weights == "bfloat16" else abs(weight).max(axis=1, keepdims=True)
    assert (abs(rounded(weight, weights) - weight) <= error * 1.01 * scale).all()
    assert (rounded(weight, "float32") == weight).all()


def test_the_comparison_of_formats() -> None:
    """Every log-probability counts: those of the recorded samples are those that the model gives in one pass."""
    model = small_model(unet=True)
    recordings = [torch.randint(32, (1, 50)), torch.randint(32, (1, 30))]
    rows = compare(model, recordings, ["int16", "int8"])
    exact = torch.cat([log_probabilities(model, tokens).gather(0, tokens)[0] for tokens in recordings])
    coarse = with_rounded_weights(model, "int8")
    scores = torch.cat([log_probabilities(coarse, tokens).gather(0, tokens)[0] for tokens in recordings])
    assert rows["float32"].bits_per_sample == pytest.approx(-exact.mean().item() / torch.log(torch.tensor(2.0)).item())
    assert rows["int8"].largest == pytest.approx((scores - exact).abs().max().item(), rel=1e-5)
    assert rows["int8"].difference == pytest.approx((scores.mean() / exact.mean() - 1).item(), abs=1e-6)
    assert 0 < rows["int16"].largest < 1e-3 < rows["int8"].largest <= rows["int8"].largest_of_all


def test_formats_are_known_and_need_the_compiled_engine() -> None:
    assert tuple(FORMATS) == WEIGHTS
    with pytest.raises(UserError, match="unknown format of weights 'int4'"):
        create_engine("numba", small_model(), 1, "int4")
    with pytest.raises(UserError, match="need the engine 'numba'"):
        create_engine("eager", small_model(), 1, "int8")


def test_it_stays_finite_for_a_hundred_thousand_steps() -> None:
    """Stable state spaces do not grow for any parameters (SaShiMi, section 4.2)."""
    model = small_model(n_layers=1, d_model=8)
    generated = NumbaEngine(model, 1, 1).run(
        torch.tensor([16]), torch.rand(1, 100_000, dtype=torch.float64), Sampling()
    )
    scores = generated[1]
    assert scores.isfinite().all()
    assert scores[0, -1000:].mean() > scores[0, :1000].mean() - 1


@pytest.mark.parametrize(("approximation", "exact"), [(erf, torch.erf), (sigmoid, torch.sigmoid)])
def test_activation_functions_are_accurate_to_float32(approximation, exact) -> None:
    numbers = torch.cat([torch.linspace(-8, 8, 4001), torch.tensor([-1e30, -50.0, 50.0, 1e30])])
    actual = torch.tensor([approximation(x) for x in numbers.numpy()], dtype=torch.float64)
    assert (actual - exact(numbers.double())).abs().max() < 5e-7


def test_a_failing_thread_does_not_block_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads share a stream; the second must stop waiting if the first never starts."""
    from sashimi_diffusion.generation.numba_engine import engine as module

    engine, run = NumbaEngine(small_model(), 1, threads=2), module.run
    uniforms = torch.rand(1, 50, dtype=torch.float64)
    engine.run(torch.tensor([16]), uniforms, Sampling())

    class FirstThreadFails:
        signatures = run.signatures

        def __call__(self, *arguments: object) -> int:
            if arguments[-1].thread == 0:
                raise KeyboardInterrupt
            return run(*arguments)

    monkeypatch.setattr(module, "run", FirstThreadFails())
    with pytest.raises(KeyboardInterrupt):
        engine.run(torch.tensor([16]), uniforms, Sampling())


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not bind threads to cores")
def test_threads_on_a_single_core_stop_sharing_a_stream() -> None:
    model = small_model()
    single, shared = NumbaEngine(model, 1, threads=1), NumbaEngine(model, 1, threads=2)
    tokens, uniforms = torch.tensor([16]), torch.rand(1, 300, dtype=torch.float64)
    expected = single.run(tokens, uniforms, Sampling())
    cores = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(cores)})
        actual = shared.run(tokens, uniforms, Sampling())
    finally:
        os.sched_setaffinity(0, cores)
    assert not shared._teamwork.together
    for got, wanted in zip(actual, expected, strict=True):
        assert torch.equal(got, wanted)


def test_the_faster_number_of_threads_generates_most_samples() -> None:
    teamwork = Teamwork()
    seconds = {True: 1.0, False: 2.0}
    samples = {True: 0, False: 0}
    for choice in range(200):
        if choice == 100:
            seconds[True] = 4.0  # another program takes the second core
        together, count = teamwork.choose()
        teamwork.record(together, seconds[together])
        samples[together] += count
        if choice == 99:
            assert teamwork.together
            assert samples[True] > 50 * samples[False]
            samples = {True: 0, False: 0}
    assert not teamwork.together
    assert samples[False] > 10 * samples[True]


def test_a_single_interruption_changes_nothing() -> None:
    teamwork = Teamwork()
    for together, seconds in [(True, 1.0), (False, 2.0), (True, 1.0), (True, 9.0), (True, 1.0)]:
        teamwork.record(together, seconds)
    assert teamwork.together


def test_one_thread_continues_after_two_stop_sharing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model()
    single, shared = NumbaEngine(model, 1, threads=1), NumbaEngine(model, 1, threads=2)
    tokens, uniforms = torch.tensor([16]), torch.rand(1, 60, dtype=torch.float64)
    monkeypatch.setattr(
        shared,
        "_run_together",
        lambda block: shared._run_alone(0, block.samples(slice(7))),
    )
    for _ in range(2):
        for got, wanted in zip(
            shared.run(tokens, uniforms, Sampling()), single.run(tokens, uniforms, Sampling()), strict=True
        ):
            assert torch.equal(got, wanted)
