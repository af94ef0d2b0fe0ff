"""Tests of given audio in the diffusion pipeline: variations, gaps and continuations of waveforms."""

import warnings

import diffusers
import numpy as np
import pytest
import torch

from sashimi_diffusion.data.pre_emphasis import pre_emphasize
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.models import WaveNetDenoiser
from sashimi_diffusion.pipelines import SashimiPipeline
from sashimi_diffusion.pipelines.given_audio import LevelWarning
from sashimi_diffusion.schedulers import SCHEDULERS, DiffWaveScheduler, create_scheduler
from sashimi_diffusion.schedulers.compatible import EDM_SCHEDULERS, FLOW_SCHEDULERS
from sashimi_diffusion.schedulers.levels import noise_levels
from tests.pipelines.exact_denoiser import COSINE, covariance_of, exact_pipeline, process, seeded

NAMES = sorted(set(SCHEDULERS) - {"diffwave-fast"})


def small_pipeline(**options: object) -> SashimiPipeline:
    torch.manual_seed(0)
    sizes = {"residual_channels": 4, "skip_channels": 4, "n_layers": 2, "dilation_cycle": 2}
    embedding = {"embedding_sines": 8, "embedding_hidden": 8, "embedding_dim": 8}
    audio = {"sample_rate": 100, "sample_size": 50, "waveform_std": 0.25}
    model = WaveNetDenoiser(**{**sizes, **embedding, **audio, **options})
    torch.nn.init.normal_(model.output[-1].weight, std=0.3)
    if model.class_embedding is not None:
        torch.nn.init.normal_(model.class_embedding.weight)
    pipe = SashimiPipeline(model.eval(), DiffWaveScheduler(10, beta_end=0.2))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def pipe() -> SashimiPipeline:
    return small_pipeline()


@pytest.fixture(scope="module")
def recording() -> torch.Tensor:
    return 0.25 * torch.randn(50, generator=seeded(7))


# Variations


STOCHASTIC = ("diffwave", "ddpm", "dpmsolver++-sde", "dpmsolver++-sde-karras", "euler-ancestral")


@pytest.mark.parametrize("name", NAMES)
def test_a_variation_of_white_noise_correlates_with_it_as_theory_says(name: str) -> None:
    """White x_0 has the exact eps = s x, so the probability flow keeps x_t: its result correlates with x_0 by a.

    The reverse diffusion with new noise draws from p(x_0 | x_t), whose mean is a x_t: the correlation is a^2.
    """
    own, audio = exact_pipeline(name), process(500, 0.0, 16)
    visited: list[float] = []
    result = own(
        audio=audio,
        strength=0.5,
        num_inference_steps=20,
        generator=seeded(),
        output_type="pt",
        callback_on_step_end=lambda pipe, i, t, tensors: visited.append(float(t)),
    ).audios
    assert result.shape == audio.shape
    # The steps of "ddpm" and "euler-ancestral" add too little noise if they are long.
    assert result.std().item() == pytest.approx(0.5, rel=0.1)
    found = float(torch.corrcoef(torch.stack([audio.flatten(), result.flatten()]))[0, 1])
    level = np.exp(np.interp(visited[0], np.arange(200), np.log(noise_levels(COSINE.alphas_cumprod))))
    signal = (1 + level**2) ** -0.5
    assert 0.6 < signal < 0.8
    assert found == pytest.approx(signal**2 if name in STOCHASTIC else signal, abs=0.04)


def test_a_small_strength_changes_little_and_one_is_pure_noise(pipe: SashimiPipeline, recording: torch.Tensor) -> None:
    own = exact_pipeline(correlation=0.9)
    audio = process(1, 0.9, 16)
    results = [
        own(audio=audio, strength=strength, generator=seeded(), output_type="pt").audios for strength in (0.01, 0.3, 1)
    ]
    differences = [float((result - audio).square().mean()) for result in results]
    assert differences[0] < 1e-3 < differences[1] < differences[2]
    drawn = pipe(generator=seeded()).audios
    np.testing.assert_array_equal(pipe(audio=recording, strength=1, generator=seeded()).audios, drawn)


def test_only_the_steps_below_the_strength_are_run(pipe: SashimiPipeline, recording: torch.Tensor) -> None:
    seen: list[float] = []
    pipe(
        audio=recording,
        strength=0.4,
        callback_on_step_end=lambda pipe, i, t, tensors: seen.append((i, int(t))),
        generator=seeded(),
    )
    assert seen == [(0, 3), (1, 2), (2, 1), (3, 0)]
    assert pipe.num_timesteps == 4


def test_one_recording_serves_a_batch_and_the_batch_split_changes_nothing(recording: torch.Tensor) -> None:
    pipe = small_pipeline(num_classes=3)
    several = torch.stack([recording, recording.flip(0), -recording])[:, None]

    def split(size: int, **options: object) -> np.ndarray:
        generator = seeded()
        parts = [slice(i, i + size) for i in range(0, 3, size)]
        return np.concatenate(
            [
                pipe(audio=several[part], class_labels=[2, 0, 1][part], generator=generator, **options).audios
                for part in parts
            ]
        )

    mask = torch.arange(50) < 30
    for options in ({"strength": 0.5}, {"mask": mask, "jumps": 1}, {"audio_length_in_s": 0.6}):
        np.testing.assert_allclose(split(1, **options), split(3, **options), atol=1e-5)
    four = pipe(audio=recording, strength=0.5, class_labels=[0, 1, 2, 0], generator=seeded()).audios
    assert four.shape == (4, 1, 50)
    repeated = pipe(audio=several, strength=0.5, num_waveforms_per_prompt=2, generator=seeded()).audios
    assert repeated.shape == (6, 1, 50)
    closeness = np.abs(repeated - several.repeat_interleave(2, dim=0).numpy()).mean(axis=(1, 2))
    assert (closeness < np.abs(repeated - several.repeat(2, 1, 1).numpy())[1:5].mean()).all()


def test_arrays_and_shapes_of_audio(pipe: SashimiPipeline, recording: torch.Tensor) -> None:
    expected = pipe(audio=recording, strength=0.5, generator=seeded()).audios
    for audio in (recording[None], recording[None, None], recording.numpy(), recording.double().numpy()):
        np.testing.assert_allclose(pipe(audio=audio, strength=0.5, generator=seeded()).audios, expected, atol=1e-6)


def test_given_audio_with_guidance_latents_and_two_channels(recording: torch.Tensor) -> None:
    pipe = small_pipeline(in_channels=2, out_channels=2, num_classes=2)
    audio = torch.stack([recording, 0.5 * recording])
    options = {"audio": audio, "class_labels": 1, "guidance_scale": 2.0, "generator": seeded()}
    mask = torch.stack([torch.arange(50) < 20, torch.ones(50, dtype=torch.bool)])  # the second channel stays
    result = pipe(**options, mask=mask).audios[0]
    np.testing.assert_array_equal(result[:, :20], audio[:, :20].numpy())
    np.testing.assert_array_equal(result[1], audio[1].numpy())
    assert np.abs(result[0, 20:] - audio[0, 20:].numpy()).max() > 0.01
    noise = torch.randn(1, 2, 50, generator=seeded(5))
    given = [pipe(**{**options, "generator": seeded(1)}, strength=0.5, latents=noise).audios for _ in range(2)]
    np.testing.assert_array_equal(*given)


# Gaps and continuations


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("jumps", [0, 1])
def test_kept_samples_are_exactly_the_given_ones(name: str, jumps: int, recording: torch.Tensor) -> None:
    pipe = small_pipeline(pre_emphasis=0.9)
    pipe.scheduler = create_scheduler(name, DiffWaveScheduler(200).config)
    mask = (torch.arange(50) < 20) | (torch.arange(50) >= 35)
    audios = pipe(audio=recording, mask=mask, jumps=jumps, num_inference_steps=10, generator=seeded()).audios
    assert audios.dtype == np.float32
    np.testing.assert_array_equal(audios[0, 0, mask], recording[mask].numpy())
    assert np.isfinite(audios).all()
    assert not np.allclose(audios[0, 0, ~mask], recording[~mask].numpy(), atol=1e-3)


@pytest.mark.parametrize("steps", [4, 20])
@pytest.mark.parametrize("name", [*FLOW_SCHEDULERS, *EDM_SCHEDULERS])
def test_given_audio_with_the_schedulers_of_other_objectives(name: str, steps: int, recording: torch.Tensor) -> None:
    objective = name.partition("-")[0]
    config = {"flow": diffusers.FlowMatchEulerDiscreteScheduler(), "edm": diffusers.EDMEulerScheduler(sigma_data=1.0)}
    pipe = small_pipeline(objective=objective)
    pipe.scheduler = create_scheduler(name, config[objective].config)
    mask = torch.arange(50) < 25
    for use in ({"mask": mask}, {"mask": mask, "jumps": 0}, {"audio_length_in_s": 0.6}):
        audios = pipe(audio=recording, **use, num_inference_steps=steps, generator=seeded()).audios
        np.testing.assert_array_equal(audios[0, 0, :25], recording[:25].numpy())
        assert np.isfinite(audios).all()
    varied = [
        pipe(audio=recording, strength=strength, num_inference_steps=20, generator=seeded()).audios
        for strength in (0.1, 0.9)
    ]
    differences = [np.square(audios - recording.numpy()).mean() for audios in varied]
    assert differences[0] < differences[1]


@pytest.mark.parametrize("name", ["diffwave", "dpmsolver++-sde-karras", "euler-ancestral"])
def test_a_gap_of_a_gaussian_process_has_the_conditional_distribution(name: str) -> None:
    own, audio = exact_pipeline(name, correlation=0.9), process(1, 0.9, 16, seed=3)
    keep = torch.ones(16, dtype=torch.bool)
    keep[6:10] = False
    options = {"mask": keep, "jumps": 4, "num_inference_steps": 20, "output_type": "pt", "generator": seeded()}
    gaps = own(audio=audio, batch_size=300, **options).audios[:, 0, ~keep]
    covariance = 0.25 * covariance_of(0.9, 16)
    weights = covariance[~keep][:, keep] @ torch.linalg.inv(covariance[keep][:, keep])
    mean = weights @ audio[0, 0, keep]
    deviation = (covariance[~keep][:, ~keep] - weights @ covariance[keep][:, ~keep]).diag().sqrt()
    assert ((gaps.mean(0) - mean).abs() / deviation).max() < 0.2
    assert gaps.std(0).numpy() == pytest.approx(deviation.numpy(), rel=0.15)


def test_what_a_gap_hides_does_not_matter(recording: torch.Tensor) -> None:
    mask = (torch.arange(50) < 20) | (torch.arange(50) >= 35)
    for pre_emphasis in (0.0, 0.9):
        pipe = small_pipeline(pre_emphasis=pre_emphasis)
        hidden = torch.where(mask, recording, 5 * recording)
        found = [pipe(audio=audio, mask=mask, generator=seeded()).audios for audio in (recording, hidden)]
        np.testing.assert_allclose(*found, atol=1e-5)


def test_pre_emphasis_leaves_no_step_at_the_end_of_a_gap() -> None:
    """With an exact denoiser of white noise after strong pre-emphasis, the waveform is a slow random walk."""
    own = exact_pipeline(pre_emphasis=0.95, sample_rate=2000)
    walk = torch.linspace(-2, 2, 100)
    keep = (torch.arange(100) < 40) | (torch.arange(100) >= 60)
    audios = own(audio=walk, mask=keep, batch_size=50, generator=seeded(), output_type="pt").audios[:, 0]
    steps = audios.diff(dim=-1).square().mean(0).sqrt()
    assert float(steps[59]) < 1.5 * float(steps[40:59].mean())  # the last generated sample and the first kept one


def test_audio_is_continued_beyond_its_end(pipe: SashimiPipeline, recording: torch.Tensor) -> None:
    audios = pipe(audio=recording, audio_length_in_s=0.8, generator=seeded()).audios
    assert audios.shape == (1, 1, 80)
    np.testing.assert_array_equal(audios[0, 0, :50], recording.numpy())
    assert audios[0, 0, 50:].std() > 0.01
    mask = torch.arange(50) >= 10
    both = pipe(audio=recording, mask=mask, audio_length_in_s=0.8, generator=seeded()).audios
    np.testing.assert_array_equal(both[0, 0, 10:50], recording[10:].numpy())


def test_callbacks_see_the_known_samples_and_may_replace_the_latents(
    pipe: SashimiPipeline, recording: torch.Tensor
) -> None:
    mask = torch.arange(50) < 25
    last: list[torch.Tensor] = []

    def silence(pipe: SashimiPipeline, step: int, timestep: torch.Tensor, tensors: dict) -> dict:
        last.append(tensors["latents"])
        return {"latents": torch.zeros_like(tensors["latents"])}

    audios = pipe(audio=recording, mask=mask, callback_on_step_end=silence, generator=seeded()).audios
    np.testing.assert_allclose(last[-1][0, 0, :25].numpy() * 0.25, recording[:25].numpy(), atol=1e-6)
    np.testing.assert_array_equal(audios[0, 0, :25], recording[:25].numpy())
    assert not audios[0, 0, 26:].any()


def test_without_jumps_every_step_is_run_once(pipe: SashimiPipeline, recording: torch.Tensor) -> None:
    mask = torch.arange(50) < 25
    for jumps in (0, 1, 3):
        pipe(audio=recording, mask=mask, jumps=jumps, generator=seeded())
        assert pipe.num_timesteps == 10 * (1 + jumps)


# Wrong input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"audio": None, "mask": [True]}, "mask was given without audio"),
        ({"audio": None, "strength": 0.5}, "strength was given without audio"),
        ({}, "not what to do: give strength"),
        ({"strength": 0}, "strength is 0: expected a number above 0, up to 1"),
        ({"strength": 1.01}, r"strength is 1\.01"),
        ({"strength": float("nan")}, "strength is nan"),
        ({"strength": True}, "strength is True"),
        ({"strength": "1"}, "strength is '1'"),
        ({"strength": 0.5, "mask": torch.arange(50) < 3}, "strength and mask were given"),
        ({"strength": 0.5, "audio_length_in_s": 0.8}, "asks for 80 samples instead of 50"),
        ({"mask": torch.zeros(50)}, "mask keeps nothing"),
        ({"mask": torch.ones(50)}, "mask keeps everything"),
        ({"mask": torch.full((50,), 0.5)}, "other values than 0 and 1"),
        ({"mask": torch.ones(49)}, r"mask has shape \(49,\), the audio \(1, 1, 50\)"),
        ({"mask": "0:0.5"}, "mask is '0:0.5': expected a tensor or an array of booleans"),
        (
            {"mask": torch.arange(50) < 3, "audio_length_in_s": 0.2},
            "audio has 50 samples, audio_length_in_s asks for 20",
        ),
        (
            {"audio": "a.wav", "strength": 0.5},
            "audio is 'a.wav': expected a tensor or an array of floating-point numbers, waveforms",
        ),
        ({"audio": torch.ones(2, 50), "strength": 0.5}, r"audio has shape \(2, 50\), expected \(1, length\) or"),
        ({"audio": torch.ones(1, 1, 1, 50), "strength": 0.5}, "audio has shape"),
        ({"audio": torch.ones(0), "strength": 0.5}, r"audio has shape \(0,\)"),
        (
            {"audio": torch.ones(50, dtype=torch.int16), "strength": 0.5},
            "audio is numbers of int16: expected floating-point",
        ),
        ({"audio": torch.full((50,), float("nan")), "strength": 0.5}, "non-finite samples"),
        ({"audio": torch.full((50,), float("inf")), "strength": 0.5}, "non-finite samples"),
        ({"audio": torch.ones(50).double() * 1e300, "strength": 0.5}, "audio has non-finite samples"),
        ({"audio": torch.full((50,), 1e6), "strength": 0.5}, r"audio has samples up to 1e\+06, but full scale is 1"),
        ({"audio": torch.ones(50).to_sparse(), "strength": 0.5}, "audio is a sparse tensor of .*: expected"),
        ({"audio": torch.ones(50, device="meta"), "strength": 0.5}, "audio is on the device meta, which has no values"),
        ({"mask": torch.ones(50, device="meta")}, "mask is on the device meta, which has no values"),
        ({"mask": torch.ones(50).to_sparse()}, "mask is a sparse tensor"),
        ({"mask": torch.ones(50, dtype=torch.complex64)}, "mask is numbers of torch.complex64"),
        ({"audio": torch.ones(3, 1, 50), "strength": 0.5, "batch_size": 2}, "batch_size is 2, audio has 3"),
        ({"strength": 0.5, "jumps": 2}, "jumps was given without a mask"),
        ({"mask": torch.arange(50) < 3, "jumps": -1}, "jumps is -1"),
        ({"mask": torch.arange(50) < 3, "jumps": 1.5}, r"jumps is 1\.5"),
        ({"strength": 0.5, "mel": torch.zeros(1, 2, 3)}, "a mel was given, but this model is not a vocoder"),
    ],
)
def test_wrong_arguments_are_errors_of_one_line(
    options: dict, message: str, pipe: SashimiPipeline, recording: torch.Tensor
) -> None:
    with pytest.raises(UserError, match=message) as raised:
        pipe(**{"audio": 0.2 * recording, "generator": seeded(), **options})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "strength", "least"),
    [("ddim", 0.1, 0.5), ("diffwave", 0.04, 0.1), ("flow-euler", 0.2, 0.5), ("edm-dpmsolver++", 0.2, 0.5)],
)
def test_a_strength_below_the_last_step_is_refused(name: str, strength: float, least: float) -> None:
    """Otherwise it would begin there, and change far more of the audio than was asked for."""
    objective = {"flow-euler": "flow", "edm-dpmsolver++": "edm"}.get(name, "diffusion")
    pipe = small_pipeline(objective=objective)
    kinds = {"flow": diffusers.FlowMatchEulerDiscreteScheduler(10), "edm": diffusers.EDMEulerScheduler(sigma_data=1.0)}
    pipe.scheduler = create_scheduler(name, kinds.get(objective, pipe.scheduler).config)
    steps = 10 if name == "diffwave" else 2
    with pytest.raises(UserError, match=f"the last of {steps} sampling steps begins at {least} of the noise"):
        pipe(audio=torch.ones(50), strength=strength, num_inference_steps=steps)
    pipe(audio=torch.ones(50), strength=0.6 * least, num_inference_steps=steps)


@pytest.mark.parametrize("kind", [">f4", np.longdouble, "float64", "readonly"])
def test_arrays_of_every_kind_are_the_same_audio(pipe: SashimiPipeline, recording: torch.Tensor, kind: object) -> None:
    array = recording.numpy().copy() if kind == "readonly" else recording.numpy().astype(kind)
    array.flags.writeable = kind != "readonly"
    mask = (np.arange(50) < 30).astype(">i4")
    expected = pipe(audio=recording, mask=torch.arange(50) < 30, generator=seeded()).audios
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(pipe(audio=array, mask=mask, generator=seeded()).audios, expected)


def test_audio_that_no_memory_holds_is_refused(pipe: SashimiPipeline, recording: torch.Tensor) -> None:
    with pytest.raises(UserError, match="GiB of memory"):
        pipe(audio=recording, audio_length_in_s=1e9)


@pytest.mark.parametrize(
    ("factor", "words"), [(1e-3, "60 dB below"), (0.25, "12 dB below"), (20, "26 dB above"), (0, "is silent")]
)
def test_an_unusual_level_is_said(factor: float, words: str, pipe: SashimiPipeline, recording: torch.Tensor) -> None:
    level = recording / recording.square().mean().sqrt() * 0.25
    with pytest.warns(LevelWarning, match=words):
        pipe(audio=factor * level, strength=0.5, generator=seeded())


def test_the_level_of_a_model_with_pre_emphasis_is_that_after_it(recording: torch.Tensor) -> None:
    pipe = small_pipeline(pre_emphasis=0.9)
    slow = torch.sin(torch.arange(50) / 50)  # hardly anything of it is left
    usual = pre_emphasize(slow, 0.9)
    usual = slow * 0.25 / usual.square().mean().sqrt()
    pipe(audio=usual, strength=0.5, generator=seeded())  # without a warning, which the tests make an error
