"""Tests of the arguments of a pipeline call that are known from diffusers."""

from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import tqdm.auto
from accelerate.hooks import CpuOffload
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from torch import Tensor

from sashimi_diffusion import SashimiAutoregressive, SashimiAutoregressivePipeline
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.models import WaveNetDenoiser
from sashimi_diffusion.pipelines import SashimiPipeline
from sashimi_diffusion.schedulers import DiffWaveScheduler, create_scheduler
from sashimi_diffusion.schedulers.compatible import create_few_step_scheduler

SIZES = {"residual_channels": 8, "skip_channels": 8, "n_layers": 2, "dilation_cycle": 2}
EMBEDDING = {"embedding_sines": 8, "embedding_hidden": 8, "embedding_dim": 8}
AUDIO = {"sample_rate": 100, "sample_size": 50, "waveform_std": 0.25}
LABELS = {"num_classes": 10, "class_names": list(map(str, range(10))), "num_speakers": 2}


def make_pipeline(scheduler: str = "diffwave", **options: Any) -> SashimiPipeline:
    torch.manual_seed(0)
    model = WaveNetDenoiser(**SIZES, **EMBEDDING, **AUDIO, **options).eval()
    torch.nn.init.normal_(model.output[-1].weight, std=0.3)
    for embedding in (model.class_embedding, model.speaker_embedding):
        if embedding is not None:
            torch.nn.init.normal_(embedding.weight)
    pipe = SashimiPipeline(model, create_scheduler(scheduler, DiffWaveScheduler(10, beta_end=0.2).config))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def pipe() -> SashimiPipeline:
    return make_pipeline()


@pytest.fixture(scope="module")
def digits() -> SashimiPipeline:
    return make_pipeline(**LABELS)


@pytest.fixture(scope="module")
def autoregressive() -> SashimiAutoregressivePipeline:
    torch.manual_seed(0)
    model = SashimiAutoregressive(sample_rate=8000, sample_size=60, d_model=8, n_layers=1, n_state=4, pool=[4])
    pipe = SashimiAutoregressivePipeline(model.eval())
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        ({}, 1),
        ({"class_labels": 7}, 1),
        ({"class_labels": [7, 3]}, 2),
        ({"class_labels": ("7", "3", "1")}, 3),
        ({"class_labels": torch.tensor([7, 3])}, 2),
        ({"class_labels": np.array([7, 3])}, 2),
        ({"class_labels": range(4)}, 4),
        ({"class_labels": 7, "speaker_labels": [0, 1, 0]}, 3),
        ({"batch_size": 2, "class_labels": 7, "num_waveforms_per_prompt": 2}, 4),
        ({"latents": torch.zeros(3, 1, 50)}, 3),
        ({"latents": torch.zeros(4, 1, 50), "num_waveforms_per_prompt": 2}, 4),
    ],
)
def test_the_batch_size_follows_from_the_other_arguments(arguments: dict, count: int, digits: SashimiPipeline) -> None:
    assert digits(num_inference_steps=1, **arguments).audios.shape == (count, 1, 50)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 1, "class_labels": [7, 3]}, "batch_size is 1, class_labels has 2: expected the same number"),
        ({"class_labels": [7, 3], "speaker_labels": [0, 1, 0]}, "class_labels has 2, speaker_labels has 3"),
        ({"class_labels": [7, 3], "latents": torch.zeros(3, 1, 50)}, "class_labels has 2, latents has 3"),
        ({"class_labels": []}, "class_labels is empty"),
        ({"batch_size": True}, "batch_size is True, expected a whole number of at least 1$"),
        ({"batch_size": 2.0}, r"batch_size is 2\.0, expected a whole number"),
        ({"num_waveforms_per_prompt": 0}, "num_waveforms_per_prompt is 0, expected at least 1"),
        ({"num_waveforms_per_prompt": "2"}, "num_waveforms_per_prompt is '2', expected a whole number"),
        ({"audio_length_in_s": "1"}, "audio_length_in_s is '1': expected a number of seconds"),
        ({"audio_length_in_s": [1]}, r"audio_length_in_s is \[1\]: expected a number of seconds"),
        ({"generator": 5}, "generator is 5: expected a torch.Generator, or a list"),
        ({"generator": [5]}, r"generator is \[5\]: expected a torch.Generator, or a list"),
        ({"generator": (torch.Generator(),)}, "expected a torch.Generator, or a list"),
        ({"callback_on_step_end": 5}, "callback_on_step_end is 5: expected a function"),
        ({"callback_on_step_end_tensor_inputs": None}, "tensor_inputs is None: expected a list of some of latents"),
        ({"callback_on_step_end_tensor_inputs": "latents"}, "tensor_inputs is 'latents': expected a list of some of"),
    ],
)
def test_a_contradiction_about_the_batch_is_refused(arguments: dict, message: str, digits: SashimiPipeline) -> None:
    with pytest.raises(UserError, match=message):
        digits(**arguments)


def test_every_label_gets_its_waveforms(digits: SashimiPipeline) -> None:
    several = digits(class_labels=[7, "3"], num_waveforms_per_prompt=3, generator=seeded()).audios
    expected = digits(class_labels=[7, 7, 7, 3, 3, 3], speaker_labels=[0, 1, 0, 0, 1, 0], generator=seeded()).audios
    np.testing.assert_array_equal(several, expected)
    own = digits(class_labels=[7, 3], speaker_labels=[1, 0], num_waveforms_per_prompt=2, generator=seeded()).audios
    again = digits(class_labels=[7, 7, 3, 3], speaker_labels=[1, 1, 0, 0], generator=seeded()).audios
    np.testing.assert_array_equal(own, again)
    with pytest.raises(UserError, match="1 generators for a batch of 2"):
        digits(class_labels=7, num_waveforms_per_prompt=2, generator=[seeded()])


def test_every_mel_gets_its_waveforms() -> None:
    pipe = make_pipeline(mel_channels=5, mel_upsample=(2, 5))
    mel = torch.randn(2, 5, 7, generator=seeded())
    several = pipe(mel=mel, num_waveforms_per_prompt=2, generator=seeded()).audios
    np.testing.assert_array_equal(several, pipe(mel=mel[[0, 0, 1, 1]], generator=seeded()).audios)


TEXT = "batch_size is 'say seven', expected a whole number of at least 1; the pipeline takes no text"
CHOICES = r"this model has 0, 1, 2, 3, 4, 5, 6, 7, 8, 9\)?$"


def test_a_text_is_answered_with_the_classes(
    pipe: SashimiPipeline, digits: SashimiPipeline, autoregressive: SashimiAutoregressivePipeline
) -> None:
    with pytest.raises(UserError, match=f"^{TEXT}, choose with class_labels: {CHOICES}"):
        digits("say seven")
    for other in (pipe, autoregressive):
        with pytest.raises(UserError, match=f"^{TEXT}$"):
            other("say seven")


@pytest.mark.parametrize("label", ["seven", 10 + 1, -1, 7.0, True, None, [7.0], [[7]], ["7", "seven"], b"7", {"7"}])
def test_a_label_that_is_none_is_answered_with_the_classes(label: object, digits: SashimiPipeline) -> None:
    if label is None:
        label = [None]
    with pytest.raises(UserError, match=CHOICES) as caught:
        digits(class_labels=label)
    assert "\n" not in str(caught.value)


def test_speakers_are_listed_as_well() -> None:
    pipe = make_pipeline(**LABELS, speaker_names=["ann", "bob"])
    for label in ("zoe", 3, -1, 0.5, False):
        with pytest.raises(UserError, match=r"this model has 0 to 1 or ann, bob\)$"):
            pipe(class_labels=7, speaker_labels=label)


def test_latents_are_the_noise_at_the_beginning() -> None:
    pipe = make_pipeline("ddim")
    noise = torch.randn(2, 1, 50, generator=seeded(5))
    x, scheduler = noise, pipe.scheduler
    scheduler.set_timesteps(4)
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(pipe.model(x, t).sample, t, x).prev_sample
    np.testing.assert_allclose(pipe(num_inference_steps=4, latents=noise).audios, 0.25 * x.numpy(), atol=1e-6)
    double = pipe(num_inference_steps=4, latents=noise.double()).audios
    np.testing.assert_allclose(double, 0.25 * x.numpy(), atol=1e-6)


def test_latents_are_scaled_to_the_first_noise_level() -> None:
    pipe = make_pipeline("euler")
    pipe.set_timesteps(4)
    assert float(pipe.scheduler.init_noise_sigma) != 1
    seen: list[Tensor] = []
    pipe.scheduler.scale_model_input, scaled = (
        lambda x, t: seen.append(x) or scaled(x, t),
        (pipe.scheduler.scale_model_input),
    )
    pipe(num_inference_steps=4, latents=torch.ones(1, 1, 50))
    torch.testing.assert_close(seen[0], torch.full((1, 1, 50), float(pipe.scheduler.init_noise_sigma)))


@pytest.mark.parametrize(
    ("latents", "message"),
    [
        (torch.zeros(2, 1, 49), r"expected a tensor .* of shape \(2, 1, 50\), got \(2, 1, 49\)"),
        (torch.zeros(2, 2, 50), r"shape \(2, 1, 50\), got \(2, 2, 50\)"),
        (torch.zeros(2, 50), r"shape \(2, 1, 50\), got \(2, 50\)"),
        (torch.zeros(2, 1, 50, dtype=torch.int64), r"got \(2, 1, 50\) of torch.int64"),
        (np.zeros((2, 1, 50)), "got ndarray"),
        ("noise", "got str"),
        (torch.full((2, 1, 50), torch.nan), r"latents are not finite \(NaN or infinity\): expected noise"),
        (torch.zeros(2, 1, 50, device="meta"), "latents are on the device meta"),
    ],
)
def test_latents_of_another_shape_are_refused(latents: object, message: str, pipe: SashimiPipeline) -> None:
    with pytest.raises(UserError, match=message):
        pipe(batch_size=2, latents=latents)


@pytest.mark.parametrize("name", ["ddpm", "dpmsolver++", "euler", "heun"])
def test_timesteps_replace_those_of_the_scheduler(name: str) -> None:
    pipe, visited = make_pipeline(name), []
    chosen = [key for key in ("use_karras_sigmas", "use_exponential_sigmas") if pipe.scheduler.config.get(key)]
    if chosen:
        with pytest.raises(UserError, match=f"cannot use these timesteps: .*{chosen[0]}.*NAME=False"):
            pipe(timesteps=[9, 6, 1])
        own = dict.fromkeys(chosen, False)
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, **own)

    def note(pipe: SashimiPipeline, i: int, t: Tensor, tensors: dict) -> None:
        visited.append(int(t))

    audios = pipe(timesteps=[9, 6, 1], generator=seeded(), callback_on_step_end=note).audios
    assert list(dict.fromkeys(visited)) == [9, 6, 1]
    assert pipe.num_timesteps == len(visited)
    assert np.isfinite(audios).all()
    np.testing.assert_array_equal(pipe(timesteps=torch.tensor([9, 6, 1]), generator=seeded()).audios, audios)
    np.testing.assert_array_equal(pipe(None, 3, timesteps=(9, 6, 1), generator=seeded()).audios, audios)


def test_sigmas_replace_those_of_the_scheduler() -> None:
    pipe = make_pipeline("euler")
    pipe.set_timesteps(10)
    levels = pipe.scheduler.sigmas.tolist()
    expected = pipe(num_inference_steps=10, generator=seeded()).audios
    audios = pipe(sigmas=levels, generator=seeded()).audios
    np.testing.assert_allclose(audios, expected, atol=1e-4 * np.abs(expected).max())
    assert np.isfinite(pipe(sigmas=[levels[0], levels[4], 0.0], generator=seeded()).audios).all()
    assert pipe.num_timesteps == 2


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("diffwave", {"timesteps": [9, 1]}, "DiffWaveScheduler takes no timesteps: give num_inference_steps"),
        ("ddim", {"sigmas": [3.0, 0.0]}, "DDIMScheduler takes no sigmas"),
        ("ddpm", {"timesteps": [9, 1], "sigmas": [3.0]}, "timesteps and sigmas were given"),
        ("ddpm", {"timesteps": [1, 9]}, "expected whole numbers from 9 to 0, each smaller than the one before it"),
        ("ddpm", {"timesteps": [10, 1]}, "expected whole numbers from 9 to 0"),
        ("ddpm", {"timesteps": [9, 9]}, "each smaller"),
        ("ddpm", {"timesteps": [5.5]}, "expected whole numbers"),
        ("ddpm", {"timesteps": []}, "expected whole numbers"),
        ("ddpm", {"timesteps": "95"}, "expected whole numbers"),
        ("ddpm", {"timesteps": 5}, "expected whole numbers"),
        ("ddpm", {"timesteps": [9, 1], "num_inference_steps": 3}, "num_inference_steps is 3, timesteps has 2"),
        ("euler", {"sigmas": [1.0, -1.0]}, "expected at least two numbers from 0 on"),
        ("euler", {"sigmas": [1.0, float("nan")]}, "expected at least two numbers from 0 on"),
        ("euler", {"sigmas": [1.0]}, "expected at least two numbers from 0 on"),
        ("euler", {"sigmas": [1.0, 0.0], "num_inference_steps": 3}, "leave num_inference_steps out"),
        (
            "dpmsolver++-karras",
            {"timesteps": [9, 1]},
            "DPMSolverMultistepScheduler cannot use these timesteps: .*karras",
        ),
        ("diffwave", {"num_inference_steps": 2.5}, r"num_inference_steps is 2\.5, expected a whole number"),
        ("ddim", {"num_inference_steps": "5"}, "num_inference_steps is '5', expected a whole number"),
    ],
)
def test_impossible_timesteps_are_refused(name: str, arguments: dict, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        make_pipeline(name)(**arguments)
    assert "\n" not in str(caught.value)


def test_eta_adds_noise_to_ddim() -> None:
    pipe = make_pipeline("ddim")
    noise = torch.randn(1, 1, 50, generator=seeded())
    still = [
        pipe(latents=noise, num_inference_steps=5, eta=eta, generator=seeded(1)).audios for eta in (None, 0.0, 1.0)
    ]
    np.testing.assert_array_equal(still[0], still[1])
    assert np.abs(still[2] - still[0]).max() > 1e-2
    x, generator = noise, pipe_generator(seeded(1))
    scheduler = pipe.scheduler
    scheduler.set_timesteps(5)
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(pipe.model(x, t).sample, t, x, eta=1.0, generator=generator).prev_sample
    np.testing.assert_allclose(still[2], 0.25 * x.numpy(), atol=1e-6)


def pipe_generator(generator: torch.Generator) -> torch.Generator:
    """Return the generator of the only waveform of a call with ``generator``."""
    return seeded(int(torch.randint(2**63 - 1, (1,), generator=generator, dtype=torch.int64)))


@pytest.mark.parametrize(
    ("name", "eta", "message"),
    [
        ("diffwave", 0.0, "DiffWaveScheduler has no eta: leave it out, or use the scheduler ddim"),
        ("dpmsolver++", 1.0, "DPMSolverMultistepScheduler has no eta"),
        ("ddim", 1.5, r"eta is 1\.5, expected a number from 0 to 1"),
        ("ddim", "much", "eta is 'much'"),
        ("ddim", float("nan"), "eta is nan"),
    ],
)
def test_an_eta_that_cannot_be_used_is_refused(name: str, eta: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_pipeline(name)(eta=eta)


def test_a_callback_receives_the_tensors_that_it_asks_for(pipe: SashimiPipeline) -> None:
    seen: list[dict[str, Tensor]] = []

    def note(pipe: SashimiPipeline, i: int, t: Tensor, tensors: dict) -> dict:
        seen.append(tensors)
        return tensors

    names = ["latents", "prediction"]
    audios = pipe(
        num_inference_steps=3, generator=seeded(), callback_on_step_end=note, callback_on_step_end_tensor_inputs=names
    ).audios
    assert [list(tensors) for tensors in seen] == [names] * 3
    np.testing.assert_array_equal(audios, pipe(num_inference_steps=3, generator=seeded()).audios)
    with torch.no_grad():
        prediction = pipe.model(seen[1]["latents"], pipe.scheduler.timesteps[2]).sample
    torch.testing.assert_close(seen[2]["prediction"], prediction)
    pipe(num_inference_steps=1, callback_on_step_end=note, callback_on_step_end_tensor_inputs=[])
    assert seen[-1] == {}


class Loud(PipelineCallback):
    tensor_inputs = ["prediction", "latents"]  # noqa: RUF012  # a property in diffusers

    def callback_fn(self, pipeline: object, step_index: int, timesteps: object, callback_kwargs: dict) -> dict:
        assert list(callback_kwargs) == self.tensor_inputs
        return {"latents": torch.full_like(callback_kwargs["latents"], 4.0)}


def test_callbacks_of_diffusers_name_their_tensors(pipe: SashimiPipeline) -> None:
    for callback in (Loud(), MultiPipelineCallbacks([Loud()])):
        np.testing.assert_array_equal(pipe(num_inference_steps=2, callback_on_step_end=callback).audios, 1.0)


def test_what_a_callback_asks_for_and_returns_is_checked(
    pipe: SashimiPipeline, autoregressive: SashimiAutoregressivePipeline
) -> None:
    with pytest.raises(UserError, match=r"'latent', did you mean 'latents'\?: expected some of latents, prediction"):
        pipe(callback_on_step_end_tensor_inputs=["latent"])
    with pytest.raises(UserError, match=r"'latents'.*: expected some of audio, tokens, log_probabilities, entropies"):
        autoregressive(callback_on_step_end_tensor_inputs=["latents"])
    for changed, found in ((torch.zeros(1, 1, 49), r"\(1, 1, 49\)"), (1, "int")):
        with pytest.raises(
            UserError, match=rf"callback_on_step_end returned latents of {found}, expected \(1, 1, 50\)"
        ):
            pipe(callback_on_step_end=lambda *_, changed=changed: {"latents": changed})


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (5, "callback_on_step_end returned 5: expected None or {'latents': latents}"),
        ([], r"callback_on_step_end returned \[\]: expected None"),
        (False, "callback_on_step_end returned False: expected None"),
        ({"latent": torch.zeros(1, 1, 50)}, "returned 'latent': it can replace latents only"),
        ({"prediction": torch.zeros(1, 1, 50)}, "returned 'prediction': it can replace latents only"),
        ({"latents": torch.full((1, 1, 50), torch.inf)}, "returned latents that are not finite"),
    ],
)
def test_what_a_callback_cannot_return(pipe: SashimiPipeline, returned: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        pipe(callback_on_step_end=lambda *_: returned)


@pytest.mark.parametrize("arguments", [{"num_waveforms_per_prompt": 10**9}, {"batch_size": 10**9, "class_labels": 7}])
def test_a_call_that_no_memory_has_is_refused_before_its_lists_are_made(
    digits: SashimiPipeline, autoregressive: SashimiAutoregressivePipeline, arguments: dict
) -> None:
    message = r"this takes about 931\.3 GiB of memory, and .* GiB are free: ask for fewer or shorter waveforms"
    with pytest.raises(UserError, match=message):
        digits(**arguments)
    with pytest.raises(UserError, match=message):
        autoregressive(arguments.get("batch_size", 1), num_waveforms_per_prompt=10**9 // arguments.get("batch_size", 1))
    with pytest.raises(UserError, match="GiB are free: ask for fewer or shorter waveforms"):
        digits(audio_length_in_s=1e11)


def test_errors_come_before_the_warning_of_too_few_steps(recwarn: pytest.WarningsRecorder) -> None:
    pipe = make_pipeline("ddim")
    for wrong in ({"generator": 5}, {"latents": 5}, {"eta": 5}):
        with pytest.raises(UserError):
            pipe(num_inference_steps=1, **wrong)
    assert not recwarn
    pipe(num_inference_steps=1)
    assert "1 step is too few" in str(recwarn.pop(UserWarning).message)


def test_an_interrupted_call_returns_the_latents_of_its_step(pipe: SashimiPipeline) -> None:
    latents: list[Tensor] = []

    def stop(pipe: SashimiPipeline, i: int, t: Tensor, tensors: dict) -> None:
        assert not pipe.interrupt
        latents.append(tensors["latents"])
        pipe._interrupt = i == 2

    audios = pipe(num_inference_steps=5, generator=seeded(), callback_on_step_end=stop).audios
    assert len(latents) == 3
    assert pipe.interrupt
    np.testing.assert_array_equal(audios, 0.25 * latents[-1].numpy())
    pipe(num_inference_steps=5, callback_on_step_end=lambda *_: latents.append(torch.zeros(1)))
    assert len(latents) == 8
    assert not pipe.interrupt


def test_properties_describe_the_call() -> None:
    pipe = make_pipeline("heun", **LABELS)
    other = SashimiPipeline(pipe.model, pipe.scheduler, guidance_scale=2.5)
    other.set_progress_bar_config(disable=True)
    assert (other.guidance_scale, other.num_timesteps, other.interrupt) == (2.5, 0, False)
    other(class_labels=7, guidance_scale=3, num_inference_steps=4)
    assert (other.guidance_scale, other.num_timesteps) == (3.0, 7)  # Heun's method predicts twice, but once at the end
    other(class_labels=7, num_inference_steps=3)
    assert (other.guidance_scale, other.num_timesteps) == (2.5, 5)
    other(num_inference_steps=3)
    assert other.guidance_scale == 1.0


def test_a_callback_changes_the_guidance_of_the_following_steps(digits: SashimiPipeline) -> None:
    def audios(scale: float, callback: Any = None) -> np.ndarray:
        noise = torch.randn(1, 1, 50, generator=seeded())
        pipe = SashimiPipeline(digits.model, create_scheduler("ddim", digits.scheduler.config))
        pipe.set_progress_bar_config(disable=True)
        arguments = {"class_labels": 7, "guidance_scale": scale, "callback_on_step_end": callback}
        return pipe(num_inference_steps=2, latents=noise, **arguments).audios

    def off(pipe: SashimiPipeline, i: int, t: Tensor, tensors: dict) -> None:
        pipe._guidance_scale = 1.0

    def first_latents(pipe: SashimiPipeline, i: int, t: Tensor, tensors: dict) -> dict | None:
        return {"latents": kept[0]} if i == 0 else None

    kept: list[Tensor] = []
    audios(4.0, lambda pipe, i, t, tensors: kept.append(tensors["latents"]))
    changed = audios(4.0, off)
    np.testing.assert_allclose(changed, audios(1.0, first_latents), atol=1e-6)
    assert np.abs(changed - audios(4.0)).max() > 1e-2


def test_a_stage_of_blocks_calls_back(autoregressive: SashimiAutoregressivePipeline) -> None:
    seen: list[tuple[int, int]] = []
    tensors_seen: list[dict[str, Tensor]] = []

    def note(pipe: SashimiAutoregressivePipeline, i: int, t: int, tensors: dict) -> dict:
        assert pipe is autoregressive
        seen.append((i, t))
        tensors_seen.append(tensors)
        return tensors

    arguments = {"batch_size": 2, "engine": "eager", "prefix": np.sin(np.arange(7))}
    names = ["audio", "tokens", "log_probabilities", "entropies"]
    output = autoregressive(
        **arguments,
        block=25,
        generator=seeded(),
        callback_on_step_end=note,
        callback_on_step_end_tensor_inputs=names,
    )
    assert seen == [(0, 7), (1, 32), (2, 57), (3, 60)]
    assert autoregressive.num_timesteps == 60
    assert [list(tensors) for tensors in tensors_seen] == [names] * 4
    audio = torch.cat([tensors["audio"] for tensors in tensors_seen], dim=-1)
    np.testing.assert_array_equal(audio.numpy(), output.audios)
    np.testing.assert_array_equal(autoregressive(**arguments, generator=seeded()).audios, output.audios)


def test_an_interrupted_generation_ends_with_the_block(autoregressive: SashimiAutoregressivePipeline) -> None:
    def stop(pipe: SashimiAutoregressivePipeline, i: int, t: int, tensors: dict) -> None:
        pipe._interrupt = t >= 40

    whole = autoregressive(engine="eager", generator=seeded())
    part = autoregressive(engine="eager", generator=seeded(), block=20, callback_on_step_end=stop)
    assert autoregressive.interrupt
    np.testing.assert_array_equal(part.audios, whole.audios[..., :40])
    np.testing.assert_allclose(part.log_likelihoods, whole.log_probabilities[:, :40].sum(axis=1), rtol=1e-5)


def test_every_prefix_gets_its_waveforms(autoregressive: SashimiAutoregressivePipeline) -> None:
    prefixes = np.stack([np.sin(np.arange(9)), np.cos(np.arange(9))])
    several = autoregressive(prefix=prefixes, num_waveforms_per_prompt=2, engine="eager", generator=seeded()).audios
    again = autoregressive(prefix=prefixes[[0, 0, 1, 1]], engine="eager", generator=seeded()).audios
    np.testing.assert_array_equal(several, again)
    assert autoregressive(3, prefix=prefixes[0], engine="eager").audios.shape == (3, 1, 60)
    for call in (autoregressive, autoregressive.stream):
        with pytest.raises(UserError, match="batch_size is 3, prefix has 2"):
            call(batch_size=3, prefix=prefixes)
    assert next(autoregressive.stream(prefix=prefixes, engine="eager"))[0].shape == (2, 1, 9)


@pytest.mark.parametrize("kind", ["digits", "autoregressive"])
def test_an_offloaded_model_is_on_its_device_during_a_call(
    kind: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Count the moves to the device, which is the CPU as well."""
    loaded = CpuOffload.pre_forward
    moved: list[object] = []
    monkeypatch.setattr(CpuOffload, "pre_forward", lambda *given, **own: moved.append(own) or loaded(*given, **own))
    pipe: Any = request.getfixturevalue(kind)
    arguments: dict[str, Any] = {"engine": "eager"} if kind == "autoregressive" else {"num_inference_steps": 1}
    expected = pipe(generator=seeded(), **arguments).audios
    pipe.enable_model_cpu_offload(device="cpu")
    try:
        audios = pipe(generator=seeded(), **arguments).audios
        assert len(moved) == 1
        assert isinstance(pipe.model._hf_hook, CpuOffload)  # for the next call
    finally:
        pipe.remove_all_hooks()
        pipe._all_hooks = []
    np.testing.assert_array_equal(audios, expected)


def test_offloading_of_layers_is_refused(pipe: SashimiPipeline, autoregressive: SashimiAutoregressivePipeline) -> None:
    for refused in (
        pipe.enable_sequential_cpu_offload,
        autoregressive.enable_sequential_cpu_offload,
        autoregressive.enable_group_offload,
    ):
        with pytest.raises(UserError, match="use enable_model_cpu_offload"):
            refused(device="cpu")


def test_offloading_without_a_gpu_is_refused_by_diffusers(pipe: SashimiPipeline) -> None:
    if torch.cuda.is_available():
        pytest.skip("this computer has a GPU")
    with pytest.raises(RuntimeError, match="requires accelerator"):
        pipe.enable_model_cpu_offload()
    assert np.isfinite(pipe(num_inference_steps=1).audios).all()


@pytest.mark.parametrize("name", ["enable_attention_slicing", "disable_attention_slicing"])
def test_switches_of_attention_do_nothing(name: str, pipe: SashimiPipeline) -> None:
    expected = pipe(num_inference_steps=1, generator=seeded()).audios
    getattr(pipe, name)()
    np.testing.assert_array_equal(pipe(num_inference_steps=1, generator=seeded()).audios, expected)


def test_progress_bars_fit_a_notebook() -> None:
    from diffusers.pipelines import pipeline_utils

    assert pipeline_utils.tqdm is tqdm.auto.tqdm


@pytest.mark.parametrize("kind", ["pipe", "autoregressive"])
def test_the_progress_bar_is_configured(
    kind: str, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    pipe: Any = request.getfixturevalue(kind)
    arguments: dict[str, Any] = {"engine": "eager"} if kind == "autoregressive" else {"num_inference_steps": 2}
    pipe(**arguments)
    assert capsys.readouterr().err == ""
    pipe.set_progress_bar_config(desc="sounds")
    try:
        pipe(**arguments)
    finally:
        pipe.set_progress_bar_config(disable=True)
    assert "sounds: 100%" in capsys.readouterr().err


def test_the_call_of_another_scheduler_of_diffusers_with_its_arguments(pipe: SashimiPipeline) -> None:
    own = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    other = SashimiPipeline(pipe.model, own)
    other.set_progress_bar_config(disable=True)
    assert np.isfinite(other(num_inference_steps=2, eta=0.5, generator=seeded()).audios).all()


def test_a_student_takes_no_guidance() -> None:
    pipe = make_pipeline(num_classes=2)
    pipe.scheduler = create_few_step_scheduler(pipe.scheduler.config, 2)
    assert pipe(class_labels=1, guidance_scale=1).audios.shape == (1, 1, 50)
    with pytest.raises(UserError, match="guidance_scale is 3, but this model was distilled"):
        pipe(class_labels=1, guidance_scale=3)


def test_a_scheduler_set_by_hand_is_checked_by_the_call() -> None:
    pipe = make_pipeline()
    pipe.scheduler = diffusers.ScoreSdeVeScheduler()  # it has no step
    with pytest.raises(UserError, match="scheduler is ScoreSdeVeScheduler: expected a scheduler such as"):
        pipe()
