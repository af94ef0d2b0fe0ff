"""Tests of likelihoods of diffusion models, on Gaussian processes with a known density."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import EDMEulerScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from sashimi_diffusion.data.pre_emphasis import pre_emphasize
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.likelihood import BitsPerSample, Quantization, bits_per_sample, variational_bound
from sashimi_diffusion.likelihood.flow_ode import FlowField, Integrator, position_of
from sashimi_diffusion.models import SashimiDenoiser
from sashimi_diffusion.pipelines import SashimiPipeline
from sashimi_diffusion.schedulers import DiffWaveScheduler
from sashimi_diffusion.schedulers.noise_paths import noise_path
from tests.likelihood.gaussian import LENGTH, covariance, draw, exact_bits, exact_pipeline

STEP = 2.0**-15
COSINE = DiffWaveScheduler(1000, beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
SCHEDULERS = {
    "cosine, v": COSINE,
    "cosine, epsilon": DiffWaveScheduler(1000, beta_schedule="squaredcos_cap_v2"),
    "linear, epsilon": DiffWaveScheduler(1000, beta_start=1e-5),
    "linear, v": DiffWaveScheduler(1000, beta_start=1e-5, prediction_type="v_prediction"),
    "flow": FlowMatchEulerDiscreteScheduler(1000),
    "edm": EDMEulerScheduler(sigma_data=1.0),
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def estimate(scheduler: Any, process: Tensor, audio: Tensor, method: str = "heun", **options: Any) -> BitsPerSample:
    return bits_per_sample(exact_pipeline(scheduler, process), audio, method, generator=seeded(), **options)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_estimate_is_the_known_density_of_a_correlated_process(name: str) -> None:
    process = covariance(0.9)
    audio = draw(process, 3)
    found = estimate(SCHEDULERS[name], process, audio, hutchinson=32, steps=24)
    torch.testing.assert_close(found.bits, exact_bits(audio, process, STEP), rtol=0.01, atol=0)
    assert found.evaluations == 48


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_density_of_white_noise_is_exact(name: str) -> None:
    process = covariance(0.0)
    audio = draw(process, 2)
    found = estimate(SCHEDULERS[name], process, audio, draws=2, steps=8)
    torch.testing.assert_close(found.bits, exact_bits(audio, process, STEP), rtol=1e-5, atol=0)


def test_more_steps_come_closer_and_both_integrators_agree() -> None:
    process = covariance(0.9)
    audio = draw(process, 2)
    reference = estimate(COSINE, process, audio, "rk45", hutchinson=4, rtol=1e-6, atol=1e-6).bits
    errors = [
        float((estimate(COSINE, process, audio, hutchinson=4, steps=steps).bits - reference).abs().max())
        for steps in (4, 12, 36)
    ]
    assert errors[0] > 4 * errors[1] > 16 * errors[2]
    assert errors[2] < 0.01
    loose = estimate(COSINE, process, audio, "rk45", hutchinson=4)
    assert float((loose.bits - reference).abs().max()) < 0.01
    assert loose.evaluations < 150


def test_the_standard_error_shrinks_with_probes_and_is_honest() -> None:
    process = covariance(0.9)
    audio = draw(process, 4)
    few, many = (estimate(COSINE, process, audio, hutchinson=count, steps=16) for count in (4, 64))
    assert float(many.standard_error.mean()) < 0.5 * float(few.standard_error.mean())
    assert ((many.bits - exact_bits(audio, process, STEP)).abs() < 5 * many.standard_error).all()
    assert estimate(COSINE, process, audio, steps=2).standard_error.isnan().all()
    drawn = estimate(COSINE, process, audio, draws=3, steps=2)
    assert (drawn.standard_error > 0).all()
    assert drawn.evaluations == 12


@pytest.mark.parametrize("name", ["cosine, v", "linear, epsilon", "flow", "edm"])
def test_the_bound_is_above_the_density(name: str) -> None:
    process = covariance(0.8)
    audio = draw(process, 4)
    exact = exact_bits(audio, process, STEP)
    bound = variational_bound(exact_pipeline(SCHEDULERS[name], process), audio, 150, generator=seeded())
    assert (bound.bits > exact).all()
    # The deviation of the decoder costs 16 bits.
    assert (bound.bits < 1.2 * exact + 16 / LENGTH).all()
    assert (bound.standard_error < 0.05 * exact).all()


def test_a_bound_with_more_levels_is_tighter() -> None:
    process = covariance(0.8)
    audio = draw(process, 8)
    few, many = (
        variational_bound(
            exact_pipeline(DiffWaveScheduler(levels, prediction_type="v_prediction", beta_end=end), process),
            *(audio, 100),
            generator=seeded(),
        )
        for levels, end in ((20, 0.9), (400, 0.05))
    )
    assert float(many.bits.mean()) < float(few.bits.mean()) - 0.5


def test_variational_dequantization_is_a_bound_near_the_density() -> None:
    process = covariance(0.9)
    audio = draw(process, 4)
    found = estimate(COSINE, process, audio, dequantization="variational", draws=4, hutchinson=8, steps=24)
    excess = found.bits - exact_bits(audio, process, STEP) - 16 / LENGTH
    assert (excess > -3 * found.standard_error).all()
    assert (excess < 0.2 + 3 * found.standard_error).all()


def test_scale_and_filter_of_the_model_change_the_variables() -> None:
    # The network sees waveforms that were scaled, filtered and divided.
    audio = draw(0.01 * covariance(0.9), 3)
    filtered = pre_emphasize(torch.eye(LENGTH, dtype=torch.float64), 0.5).T
    seen = filtered @ (0.01 * covariance(0.9)) @ filtered.T * (2.0 / 0.25) ** 2
    pipe = exact_pipeline(COSINE, seen, pre_emphasis=0.5)
    pipe.model.config = type(pipe.model.config)({**pipe.model.config, "waveform_std": 0.25})
    found = bits_per_sample(pipe, audio, "heun", 32, gain=2.0, steps=24, generator=seeded())
    torch.testing.assert_close(found.bits, exact_bits(audio, 0.01 * covariance(0.9), STEP), rtol=0.01, atol=0.02)
    bound = variational_bound(pipe, audio, 100, gain=torch.full((3,), 2.0), generator=seeded())
    assert (bound.bits > found.bits).all()
    assert (bound.bits < found.bits + 2.5).all()


@pytest.mark.parametrize("kind", ["mu-law", "linear", "pcm"])
def test_uniform_dequantization_bounds_the_probability_of_coarse_cells(kind: str) -> None:
    quantization = Quantization(kind, 8)
    process = 0.04 * covariance(0.0)
    audio = draw(process, 4).clamp(-0.99, 0.99)
    found = estimate(
        DiffWaveScheduler(400, beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction"),
        process,
        audio,
        quantization=quantization,
        draws=6,
        steps=48,
    )
    cells, normal = quantization.cells(audio), torch.distributions.Normal(0.0, 0.2)
    exact = -(normal.cdf(cells.upper) - normal.cdf(cells.lower)).log2().mean(dim=(1, 2))
    assert ((found.bits - exact).abs() < 0.02 + 4 * found.standard_error).all()


def small_pipeline(**options: Any) -> SashimiPipeline:
    torch.manual_seed(0)
    sizes = {"embedding_sines": 8, "embedding_hidden": 8, "embedding_dim": 8, "sample_rate": 100, "sample_size": 16}
    model = SashimiDenoiser(d_model=4, n_layers=1, n_state=4, pool=[4], **sizes, **options)
    torch.nn.init.normal_(model.output[-1].weight, std=0.3)
    return SashimiPipeline(model.eval(), DiffWaveScheduler(10, beta_end=0.5))


def test_the_trace_is_that_of_the_jacobian_of_a_network() -> None:
    pipe = small_pipeline()
    path = noise_path(pipe.scheduler)
    probes = torch.eye(16).reshape(16, 1, 1, 16)  # their sum is the trace

    def predict(x: Tensor, timestep: Tensor) -> Tensor:
        return pipe.model(x, timestep).sample

    field = FlowField(predict, path, probes)
    x, position = torch.randn(1, 1, 16, generator=seeded()), position_of(0.5)
    jacobian = torch.autograd.functional.jacobian(lambda one: field.velocity(one, torch.tensor(0.5)), x)
    expected = jacobian.reshape(16, 16).trace().double() / math.cosh(position)
    torch.testing.assert_close(field(position, x).trace.sum(), expected, rtol=1e-4, atol=1e-5)


def test_the_model_is_as_before_and_a_seed_gives_the_same_numbers() -> None:
    pipe = small_pipeline(num_classes=2, class_names=["a", "b"])
    pipe.model.train()
    options: Any = {"class_labels": "b", "steps": 2}
    audio = torch.rand(2, 16)
    first, second = (bits_per_sample(pipe, audio, "heun", generator=seeded(), **options) for _ in range(2))
    assert torch.equal(first.bits, second.bits)
    assert pipe.model.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in pipe.model.parameters())


CLASSES: dict[str, Any] = {"num_classes": 2, "class_names": ["a", "b"]}
SPEAKERS: dict[str, Any] = {"num_speakers": 1, "speaker_names": ["ann"]}
MEL = {"mel_channels": 4, "mel_upsample": [4, 4]}


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (CLASSES, {}, r"depends on the class: give class_labels \(this model has 0 to 1 or a, b; 2 for none\)"),
        (CLASSES | SPEAKERS, {"class_labels": "a"}, "depends on the speaker: give speaker_labels"),
        ({}, {"class_labels": 0}, "this model is unconditional: leave them out"),
        ({}, {"audio": torch.zeros(1, 18)}, "audio has 18 samples, but this model needs a multiple of 4: cut it to 16"),
        ({}, {"audio": torch.zeros(1, 2)}, "pad it to 4"),
        ({}, {"audio": torch.zeros(1, 2, 16)}, r"audio has shape \(1, 2, 16\), expected \(B, 1, L\)"),
        ({}, {"audio": torch.full((16,), math.nan)}, "not finite"),
        ({}, {"method": "euler"}, "method is 'euler', expected one of rk45, heun"),
        ({}, {"steps": 0}, "steps is 0, expected a whole number from 1"),
        ({}, {"rtol": 0.0}, "rtol is 0.0 and atol is 0.001: expected numbers from 1e-06"),
        ({}, {"atol": 1e-7}, "rtol is 0.001 and atol is 1e-07: expected numbers from 1e-06"),
        ({}, {"rtol": "small"}, "rtol is 'small' and atol is 0.001: expected numbers"),
        ({}, {"audio": torch.ones(16, dtype=torch.int16)}, "audio has numbers of int16: expected .* divide 16-bit"),
        ({}, {"audio": np.zeros(16, dtype=bool)}, "audio has numbers of bool: expected floating-point numbers"),
        ({}, {"audio": "a.wav"}, "audio is 'a.wav': expected a tensor or an array of recordings"),
        ({}, {"audio": torch.zeros(16, device="meta")}, "audio is on the device meta"),
        ({}, {"audio": torch.randn(1, 16).double() * 1e200}, "the likelihood is not finite"),
        ({}, {"audio": torch.randn(1, 16), "gain": 1e30}, "the likelihood is not finite"),
        ({}, {"quantization": 8}, "quantization is 8: expected its kind or a Quantization"),
        ({}, {"gain": "loud"}, "gain is 'loud': expected a number above 0"),
        ({}, {"generator": [torch.Generator()]}, "generator is .*: expected one torch.Generator"),
        ({}, {"lowest_level": "low"}, "lowest_level is 'low', expected a noise level"),
        ({}, {"mel": torch.zeros(1, 4, 1)}, "a mel was given, but this model is not a vocoder"),
        (MEL, {"mel": torch.full((1, 4, 1), math.nan)}, "mel has 4 of 4 values that are not finite"),
        (MEL, {"mel": [0.0]}, "mel is .0.0.: expected a tensor or an array of floating-point numbers"),
        (MEL, {}, "this model is a vocoder: it needs mel"),
        (
            MEL | {"mel_whitening": True},
            {"mel": torch.zeros(1, 4, 1)},
            "a vocoder with mel_whitening has no likelihood",
        ),
        ({}, {"hutchinson": 0}, "hutchinson is 0, expected a whole number from 1"),
        ({}, {"draws": 1.5}, "draws is 1.5, expected a whole number from 1"),
        ({}, {"quantization": "a-law"}, "quantization is 'a-law', expected one of pcm, mu-law, linear"),
        ({}, {"dequantization": "none"}, "dequantization is 'none', expected one of uniform, variational"),
        ({}, {"gain": 0.0}, "gain has 1 values: expected one above 0"),
        ({}, {"gain": torch.ones(3)}, "gain has 3 values: expected one above 0, or one for each of 1 waveforms"),
        ({}, {"lowest_level": 0.0}, "lowest_level is 0.0, expected a noise level above 0"),
    ],
)
def test_wrong_requests_are_refused(model: dict, options: dict[str, Any], message: str) -> None:
    audio = options.pop("audio", torch.zeros(1, 16))
    with pytest.raises(UserError, match=message):
        bits_per_sample(small_pipeline(**model), audio, **options)


def test_a_quantization_and_an_integrator_check_their_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="a quantization has 1 bits: expected a whole number from 2 to 24"):
        Quantization("mu-law", 1)
    with pytest.raises(UserError, match="draws is 0, expected a whole number"):
        variational_bound(small_pipeline(), torch.zeros(1, 16), 0)
    with pytest.raises(UserError, match="the likelihood is not finite"):
        Integrator("rk45").solve(lambda _, x: _nan_state(x), _nan_state(torch.zeros(1, 1, 4)), 0.0, 1.0)
    monkeypatch.setattr("sashimi_diffusion.likelihood.flow_ode.MAX_EVALUATIONS", 20)
    process = covariance(0.9)
    with pytest.raises(UserError, match=r"not solved within \d+ evaluations: choose larger tolerances"):
        estimate(COSINE, process, draw(process, 1), "rk45", rtol=1e-6, atol=1e-6, steps=8)


def _nan_state(x: Tensor) -> Any:
    from sashimi_diffusion.likelihood.flow_ode import State

    return State(x * math.nan, torch.zeros(1, len(x), dtype=torch.float64))


def test_audio_that_no_memory_holds_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sashimi_diffusion.pipelines.memory.available_memory", lambda device: 2**20)
    with pytest.raises(UserError, match="GiB of memory"):
        bits_per_sample(small_pipeline(), torch.zeros(2**20))


def test_the_evaluations_are_those_of_all_draws() -> None:
    process = covariance(0.9)
    pipe, calls = exact_pipeline(COSINE, process), []
    forward = pipe.model.forward
    pipe.model.forward = lambda *arguments, **options: calls.append(1) or forward(*arguments, **options)
    found = bits_per_sample(pipe, draw(process, 1), "rk45", draws=3, rtol=1e-2, atol=1e-2, generator=seeded(4))
    assert found.evaluations == len(calls)


def test_the_smallest_tolerance_can_be_reached() -> None:
    process = covariance(0.0)
    audio = draw(process, 1)
    least = bits_per_sample(exact_pipeline(COSINE, process), audio, rtol=1e-6, atol=1e-6, generator=seeded())
    torch.testing.assert_close(least.bits, exact_bits(audio, process, STEP), rtol=1e-5, atol=0)
