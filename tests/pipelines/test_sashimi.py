"""Tests of SashimiPipeline: inputs, outputs, conditioning, and independence of the batch size."""

import functools
import inspect
import json
import math
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from diffusers import AudioPipelineOutput

from sashimi_diffusion.data.pre_emphasis import pre_emphasize
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.models import SashimiDenoiser, WaveNetDenoiser
from sashimi_diffusion.pipelines import SashimiPipeline, sample_seeds
from sashimi_diffusion.schedulers import SCHEDULERS, DiffWaveScheduler, create_scheduler

SMALL = {"residual_channels": 4, "skip_channels": 4, "n_layers": 2, "dilation_cycle": 2}
EMBEDDING = {"embedding_sines": 8, "embedding_hidden": 8, "embedding_dim": 8}
AUDIO = {"sample_rate": 100, "sample_size": 50, "waveform_std": 0.25}


def make_pipeline(steps: int = 10, sashimi: bool = False, **options: object) -> SashimiPipeline:
    torch.manual_seed(0)
    if sashimi:
        model = SashimiDenoiser(d_model=8, n_layers=1, n_state=8, **{**EMBEDDING, **AUDIO, **options})
    else:
        model = WaveNetDenoiser(**{**SMALL, **EMBEDDING, **AUDIO, **options})
    # These layers are initialized with zeros, so the output would not depend on the rest of the network.
    torch.nn.init.normal_(model.output[-1].weight, std=0.3)
    for embedding in (model.class_embedding, model.speaker_embedding):
        if embedding is not None:
            torch.nn.init.normal_(embedding.weight)
    pipe = SashimiPipeline(model.eval(), DiffWaveScheduler(steps, beta_end=0.2))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def pipe() -> SashimiPipeline:
    return make_pipeline()


@pytest.fixture(scope="module")
def class_pipe() -> SashimiPipeline:
    return make_pipeline(num_classes=3, class_names=["a", "b", "c"])


@pytest.fixture(scope="module")
def speaker_pipe() -> SashimiPipeline:
    names = {"class_names": ["a", "b", "c"], "speaker_names": ["ann", "bob"]}
    # With four channels, the ReLU would set all of them to zero for every speaker.
    return make_pipeline(num_classes=3, num_speakers=2, residual_channels=8, skip_channels=8, **names)


def test_output_is_a_float32_array_of_the_trained_length(pipe: SashimiPipeline) -> None:
    output = pipe(batch_size=2, generator=seeded())
    assert isinstance(output, AudioPipelineOutput)
    assert output.audios.shape == (2, 1, 50)
    assert output.audios.dtype == np.float32
    assert np.isfinite(output.audios).all()
    assert output.audios.std() > 0
    tensor = pipe(batch_size=2, generator=seeded(), output_type="pt", return_dict=False)[0]
    assert isinstance(tensor, torch.Tensor)
    np.testing.assert_array_equal(tensor.numpy(), output.audios)


def test_the_loop_applies_the_scheduler_to_the_model(pipe: SashimiPipeline) -> None:
    seed = sample_seeds(seeded(), 1)[0]
    generator = seeded(seed)
    x = torch.randn(1, 1, 50, generator=generator)
    scheduler = DiffWaveScheduler(10, beta_end=0.2)
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(pipe.model(x, t).sample, t, x, generator=generator).prev_sample
    np.testing.assert_allclose(pipe(generator=seeded()).audios, x.numpy() * 0.25, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["diffwave", "ddpm", "ddim", "dpmsolver++-sde", "sasolver", "euler-ancestral", "heun"])
def test_audio_does_not_depend_on_the_batch_split(name: str, class_pipe: SashimiPipeline) -> None:
    pipe = SashimiPipeline(class_pipe.model, create_scheduler(name, class_pipe.scheduler.config))
    pipe.set_progress_bar_config(disable=True)
    labels = [0, 1, 2, 0]

    def split(size: int) -> np.ndarray:
        generator = seeded()
        parts = [labels[i : i + size] for i in range(0, 4, size)]
        return np.concatenate(
            [pipe(len(part), 5, generator=generator, class_labels=part, guidance_scale=1.5).audios for part in parts]
        )

    whole = split(4)
    assert not np.allclose(whole[0], whole[3], atol=1e-2)
    for size in (1, 2):
        np.testing.assert_allclose(split(size), whole, atol=1e-5 * np.abs(whole).max())


def test_a_list_of_generators_gives_one_to_each_sample(pipe: SashimiPipeline) -> None:
    both = pipe(batch_size=2, generator=[seeded(5), seeded(6)]).audios
    np.testing.assert_allclose(pipe(generator=[seeded(6)]).audios, both[1:], atol=1e-6)
    with pytest.raises(UserError, match="2 generators for a batch of 3"):
        pipe(batch_size=3, generator=[seeded(), seeded()])


def test_without_a_generator_torch_manual_seed_determines_the_audio(pipe: SashimiPipeline) -> None:
    torch.manual_seed(3)
    first = pipe().audios
    assert not np.array_equal(first, pipe().audios)
    torch.manual_seed(3)
    np.testing.assert_array_equal(first, pipe().audios)


@pytest.mark.parametrize(
    ("steps", "prediction"), [(6, "epsilon"), (20, "epsilon"), (50, "epsilon"), (200, "epsilon"), (20, "v_prediction")]
)
def test_every_scheduler_gives_finite_audio(steps: int, prediction: str) -> None:
    pipe = make_pipeline(steps=200, n_layers=1)
    trained = DiffWaveScheduler(prediction_type=prediction)
    for name in SCHEDULERS:
        try:
            pipe.scheduler = create_scheduler(name, trained.config)
        except UserError as error:
            assert "scipy" in str(error)  # noqa: PT017 - the one package that may be absent
            continue
        audios = pipe(num_inference_steps=6 if name == "diffwave-fast" else steps, generator=seeded()).audios
        assert np.isfinite(audios).all(), name


def test_another_scheduler_of_diffusers_works(pipe: SashimiPipeline) -> None:
    own = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    other = SashimiPipeline(pipe.model, own)
    other.set_progress_bar_config(disable=True)
    assert np.isfinite(other(generator=seeded()).audios).all()
    assert own.num_inference_steps == 10  # the number of training steps, fewer than 50


@pytest.mark.parametrize(
    "scheduler",
    [diffusers.FlowMatchEulerDiscreteScheduler(), diffusers.IPNDMScheduler(), diffusers.EDMEulerScheduler()],
)
def test_schedulers_in_continuous_time_are_refused(scheduler: object, pipe: SashimiPipeline) -> None:
    with pytest.raises(UserError, match="create_scheduler"):
        SashimiPipeline(pipe.model, scheduler)(generator=seeded())


@pytest.mark.parametrize("name", ["diffwave", "ddim", "ipndm", "unipc"])
@pytest.mark.parametrize("steps", [0, -1, 11])
def test_impossible_steps_are_refused(name: str, steps: int, pipe: SashimiPipeline) -> None:
    other = SashimiPipeline(pipe.model, create_scheduler(name, pipe.scheduler.config))
    with pytest.raises(UserError, match="ask for 1 to 10"):
        other(num_inference_steps=steps)


def test_a_number_of_steps_that_diffusers_divides_wrongly_is_refused(pipe: SashimiPipeline) -> None:
    other = SashimiPipeline(pipe.model, create_scheduler("ddim", DiffWaveScheduler().config))
    with pytest.raises(UserError, match="another number"):
        other(num_inference_steps=29)


def test_lengths_are_rounded_up_and_trimmed() -> None:
    pipe = make_pipeline(sashimi=True, sample_size=64, pool=(4, 4))
    assert pipe(audio_length_in_s=0.37, generator=seeded()).audios.shape == (1, 1, 37)
    assert pipe(generator=seeded()).audios.shape == (1, 1, 64)
    longer = pipe(audio_length_in_s=0.48, generator=seeded()).audios
    np.testing.assert_allclose(pipe(audio_length_in_s=0.37, generator=seeded()).audios, longer[..., :37], atol=1e-6)


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.nan, math.inf, 0.001])
def test_impossible_lengths_are_refused(seconds: float, pipe: SashimiPipeline) -> None:
    with pytest.raises(UserError, match="seconds of audio"):
        pipe(audio_length_in_s=seconds)


def test_labels_may_be_given_in_several_ways(class_pipe: SashimiPipeline) -> None:
    expected = class_pipe(batch_size=2, class_labels=[1, 1], generator=seeded()).audios
    np.testing.assert_array_equal(class_pipe(batch_size=2, class_labels=1, generator=seeded()).audios, expected)
    tensor = torch.tensor([1, 1])
    np.testing.assert_array_equal(class_pipe(batch_size=2, class_labels=tensor, generator=seeded()).audios, expected)
    for names in ("b", ["b", 1]):
        named = class_pipe(batch_size=2, class_labels=names, generator=seeded()).audios
        np.testing.assert_array_equal(named, expected)
    assert not np.allclose(class_pipe(batch_size=2, class_labels=[1, 2], generator=seeded()).audios[1], expected[1])


def conditioning(pipe: SashimiPipeline, monkeypatch: pytest.MonkeyPatch, *arguments: object, **labels: object) -> dict:
    """Return the conditioning that the network receives in the first step of a call."""
    seen = []
    forward = pipe.model.forward
    monkeypatch.setattr(
        pipe.model, "forward", lambda *inputs, **labels: seen.append(labels) or forward(*inputs, **labels)
    )
    pipe(*arguments, **labels)
    monkeypatch.undo()
    return {name: value.tolist() for name, value in seen[0].items() if value is not None}


def test_speakers_may_be_given_in_several_ways(speaker_pipe: SashimiPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    for given, expected in (
        (1, [1, 1, 1]),
        ("bob", [1, 1, 1]),
        (["bob", "ann", "1"], [1, 0, 1]),
        ([1, "ann", 2], [1, 0, 2]),
        (torch.tensor([0, 1, 1]), [0, 1, 1]),
    ):
        labels = conditioning(speaker_pipe, monkeypatch, 3, 1, class_labels=0, speaker_labels=given)
        assert labels == {"class_labels": [0, 0, 0], "speaker_labels": expected}


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        ([0, 1, 2, 0, 1, 2, 0], [0, 0, 0, 1, 1, 1, 0]),
        ("c", [0, 1, 0, 1, 0, 1, 0]),
        ([2, 2, 0, 0, 0, 2, 1], [0, 1, 0, 1, 0, 0, 0]),
    ],
)
def test_speakers_alternate_within_each_class(
    classes: object, expected: list[int], speaker_pipe: SashimiPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert conditioning(speaker_pipe, monkeypatch, 7, 1, class_labels=classes)["speaker_labels"] == expected


def test_without_classes_speakers_alternate_over_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = make_pipeline(num_speakers=2)
    assert conditioning(pipe, monkeypatch, 3, 1) == {"speaker_labels": [0, 1, 0]}
    guided = conditioning(pipe, monkeypatch, 3, 1, guidance_scale=2.0)
    assert guided == {"speaker_labels": [0, 1, 0, 2, 2, 2]}


def test_without_classes_there_are_no_speakers(speaker_pipe: SashimiPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    assert conditioning(speaker_pipe, monkeypatch, 2, 1) == {}
    with pytest.raises(UserError, match="speaker_labels were given without class_labels"):
        speaker_pipe(2, 1, speaker_labels=1)
    with pytest.raises(UserError, match="no class_labels"):
        speaker_pipe(2, 1, guidance_scale=2.0)


def test_guidance_extrapolates_from_the_null_class_and_the_null_speaker(speaker_pipe: SashimiPipeline) -> None:
    def one_step(scale: float, **labels: object) -> np.ndarray:
        return speaker_pipe(1, 1, guidance_scale=scale, generator=seeded(), **labels).audios

    both = {"class_labels": "c", "speaker_labels": "bob"}
    conditional, unconditional = one_step(1.0, **both), one_step(1.0)
    assert np.abs(conditional - one_step(1.0, class_labels="c", speaker_labels="ann")).max() > 1e-3
    np.testing.assert_allclose(unconditional, one_step(1.0, class_labels=3, speaker_labels=2), atol=1e-6)
    np.testing.assert_allclose(one_step(0.0, **both), unconditional, atol=1e-6)
    np.testing.assert_allclose(one_step(3.0, **both), unconditional + 3 * (conditional - unconditional), atol=1e-5)


@pytest.mark.parametrize(
    ("speakers", "message"),
    [
        ("an", "no speaker 'an', did you mean 'ann'"),
        (["ann", "zoe"], "no speaker 'zoe' .this model has 0 to 1 or ann, bob"),
        (3, r"speaker_labels must be from 0 to 1 \(2 for none\), got 3"),
        (-1, "speaker_labels must be from 0 to 1"),
        ([0, 1, 0], "batch_size is 2, speaker_labels has 3"),
        ([0, None], "expected one index or name"),
        ([], "batch_size is 2, speaker_labels has 0"),
        (0.5, "expected one index or name"),
    ],
)
def test_speakers_that_do_not_fit_are_refused(speakers: object, message: str, speaker_pipe: SashimiPipeline) -> None:
    with pytest.raises(UserError, match=message):
        speaker_pipe(2, 1, class_labels=0, speaker_labels=speakers)


def test_speakers_need_a_model_with_speakers(class_pipe: SashimiPipeline) -> None:
    with pytest.raises(UserError, match="speaker_labels were given, but this model has no speakers"):
        class_pipe(class_labels=0, speaker_labels=0)


def test_guidance_extrapolates_from_the_null_class(class_pipe: SashimiPipeline) -> None:
    def one_step(labels: int | None, scale: float) -> np.ndarray:
        return class_pipe(1, 1, class_labels=labels, guidance_scale=scale, generator=seeded()).audios

    conditional, unconditional = one_step(2, 1.0), one_step(None, 1.0)
    np.testing.assert_allclose(one_step(2, 0.0), unconditional, atol=1e-6)
    np.testing.assert_allclose(one_step(2, 3.0), unconditional + 3 * (conditional - unconditional), atol=1e-5)


def test_a_pipeline_has_a_default_guidance_scale(class_pipe: SashimiPipeline, tmp_path: Path) -> None:
    def audio(pipe: SashimiPipeline, **arguments: object) -> np.ndarray:
        return pipe(1, 2, generator=seeded(), **arguments).audios

    SashimiPipeline(class_pipe.model, class_pipe.scheduler, guidance_scale=2.5).save_pretrained(tmp_path)
    guided = SashimiPipeline.from_pretrained(tmp_path)
    same = functools.partial(np.testing.assert_allclose, atol=1e-6)
    assert guided.config.guidance_scale == 2.5
    same(audio(guided, class_labels=1), audio(class_pipe, class_labels=1, guidance_scale=2.5))
    same(audio(guided, class_labels=1, guidance_scale=1.0), audio(class_pipe, class_labels=1))
    same(audio(guided), audio(class_pipe))  # without classes, guidance has no effect
    assert not np.allclose(audio(guided, class_labels=1), audio(class_pipe, class_labels=1))

    index = json.loads((tmp_path / "model_index.json").read_text())
    del index["guidance_scale"]
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    assert SashimiPipeline.from_pretrained(tmp_path).config.guidance_scale == 1
    for wrong in ("much", None, True, [2], math.inf):
        (tmp_path / "model_index.json").write_text(json.dumps({**index, "guidance_scale": wrong}))
        with pytest.raises(UserError, match=r"model_index\.json: guidance_scale is .*, expected a number"):
            SashimiPipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"class_labels": 1}, "unconditional"),
        ({"guidance_scale": 2.0}, "no class_labels"),
        ({"output_type": "pil"}, "'np' or 'pt'"),
        ({"batch_size": 0}, "at least 1"),
        ({"mel": torch.zeros(1, 8, 3)}, "not a vocoder"),
    ],
)
def test_arguments_that_an_unconditional_model_lacks_are_refused(
    arguments: dict, message: str, pipe: SashimiPipeline
) -> None:
    with pytest.raises(UserError, match=message):
        pipe(**arguments)


@pytest.mark.parametrize(
    "labels", [3 + 1, -1, [], 0.5, [[0]], torch.tensor([[0]]), torch.tensor([True]), [True, 1], 1.0, "d", ["a", None]]
)
def test_labels_that_do_not_fit_are_refused(labels: object, class_pipe: SashimiPipeline) -> None:
    with pytest.raises(UserError):
        class_pipe(class_labels=labels)


def test_guidance_must_be_a_number(class_pipe: SashimiPipeline) -> None:
    for scale in (math.nan, math.inf, -math.inf, 1e308):
        with pytest.raises(UserError, match=r"expected a number from -1e\+06 to 1e\+06"):
            class_pipe(class_labels=1, guidance_scale=scale)


def test_the_largest_guidance_scale_gives_finite_audio(class_pipe: SashimiPipeline) -> None:
    for scale in (1e6, -1e6):
        assert np.isfinite(class_pipe(class_labels=1, guidance_scale=scale).audios).all()


@pytest.mark.parametrize("sashimi", [False, True])
def test_a_mel_determines_the_length(sashimi: bool) -> None:
    pipe = make_pipeline(sashimi=sashimi, mel_channels=5, mel_upsample=(2, 5))
    mel = torch.randn(2, 5, 7, generator=seeded())
    audios = pipe(batch_size=2, mel=mel, generator=seeded()).audios
    assert audios.shape == (2, 1, 70)
    assert not np.allclose(audios, pipe(batch_size=2, mel=mel + 1, generator=seeded()).audios)
    assert pipe(batch_size=2, mel=mel, audio_length_in_s=0.7, generator=seeded()).audios.shape == (2, 1, 70)
    with pytest.raises(UserError, match="leave audio_length_in_s out"):
        pipe(batch_size=2, mel=mel, audio_length_in_s=0.5)
    np.testing.assert_array_equal(pipe(mel=mel, generator=seeded()).audios, audios)
    with pytest.raises(UserError, match="batch_size is 1, mel has 2"):
        pipe(batch_size=1, mel=mel)
    with pytest.raises(UserError, match="expected \\(2, 5, frames\\)"):
        pipe(mel=mel[:, :4])


def test_the_callback_receives_and_changes_the_latents(pipe: SashimiPipeline) -> None:
    seen = []

    def callback(pipeline: SashimiPipeline, i: int, t: torch.Tensor, state: dict) -> dict | None:
        assert pipeline is pipe
        seen.append((i, int(t), state["latents"].shape))
        return {"latents": torch.ones_like(state["latents"])} if i == 9 else None

    audios = pipe(generator=seeded(), callback_on_step_end=callback).audios
    assert seen == [(i, 9 - i, (1, 1, 50)) for i in range(10)]
    np.testing.assert_allclose(audios, 0.25)


def test_bfloat16_changes_the_audio_by_rounding_only() -> None:
    pipe = make_pipeline(sashimi=True, sample_size=64)
    expected = pipe(generator=seeded()).audios
    pipe.to(torch.bfloat16)
    dtypes = {name: parameter.dtype for name, parameter in pipe.model.named_parameters()}
    assert torch.bfloat16 in dtypes.values()
    assert all(dtype == torch.float32 for name, dtype in dtypes.items() if ".ssm." in name)
    audios = pipe(generator=seeded()).audios
    assert audios.dtype == np.float32
    assert 0 < np.abs(audios - expected).max() < 0.05 * np.abs(expected).max()


def test_float64_models_get_the_same_noise(pipe: SashimiPipeline) -> None:
    expected = pipe(generator=seeded()).audios
    double = make_pipeline().to(torch.float64)
    np.testing.assert_allclose(double(generator=seeded()).audios, expected, atol=1e-5)


def test_the_signature_is_the_documented_one() -> None:
    assert list(inspect.signature(SashimiPipeline.__call__).parameters)[1:] == [
        "batch_size",
        "num_inference_steps",
        "generator",
        "audio_length_in_s",
        "class_labels",
        "guidance_scale",
        "mel",
        "speaker_labels",
        "output_type",
        "return_dict",
        "callback_on_step_end",
        "callback_on_step_end_tensor_inputs",
        "latents",
        "timesteps",
        "sigmas",
        "eta",
        "num_waveforms_per_prompt",
        "audio",
        "strength",
        "mask",
        "jumps",
        "window_in_s",
        "overlap_in_s",
        "windows_per_batch",
    ]


@pytest.mark.parametrize("parameterization", ["nplr", "diag"])
def test_the_backend_does_not_change_the_audio(monkeypatch: pytest.MonkeyPatch, parameterization: str) -> None:
    audio = {}
    for backend in ("reference", "torch"):
        monkeypatch.setenv("SASHIMI_KERNELS", backend)
        pipe = make_pipeline(sashimi=True, parameterization=parameterization, sample_size=64)
        audio[backend] = pipe(batch_size=2, generator=seeded()).audios
    np.testing.assert_allclose(audio["torch"], audio["reference"], atol=1e-4)


def test_generated_waveforms_pass_through_the_inverse_of_pre_emphasis() -> None:
    plain = make_pipeline()(generator=seeded(), output_type="pt").audios
    filtered = make_pipeline(pre_emphasis=0.8)(generator=seeded(), output_type="pt").audios
    torch.testing.assert_close(pre_emphasize(filtered, 0.8), plain)
