"""Tests of vocoding in one piece and in overlapping windows."""

from typing import Any

import numpy as np
import pytest
import torch

from sashimi_diffusion.data.mel_envelope import MelEnvelope
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.models import SashimiDenoiser, WaveNetDenoiser
from sashimi_diffusion.pipelines import SashimiPipeline, resynthesize, sample_seeds, vocode, vocoding
from sashimi_diffusion.pipelines.griffin_lim import griffin_lim
from sashimi_diffusion.pipelines.mel import log_mel
from sashimi_diffusion.pipelines.memory import sampling_memory
from sashimi_diffusion.pipelines.prediction import PredictionGraphs
from sashimi_diffusion.pipelines.vocoding import plan_windows
from sashimi_diffusion.pipelines.windows import Windows
from sashimi_diffusion.schedulers import DiffWaveScheduler, create_scheduler

SETTINGS = {"n_fft": 64, "f_max": 500.0}
SIZES = {"embedding_sines": 8, "embedding_hidden": 8, "embedding_dim": 8, "sample_rate": 1000, "sample_size": 64}


def make_pipeline(scheduler: str = "diffwave", sashimi: bool = False, **options: Any) -> SashimiPipeline:
    options = {**SIZES, "mel_channels": 5, "mel_upsample": (4, 4), "mel_settings": SETTINGS, **options}
    torch.manual_seed(0)
    if sashimi:
        model: Any = SashimiDenoiser(d_model=4, n_layers=1, n_state=4, pool=[4, 3], **options)
    else:
        model = WaveNetDenoiser(residual_channels=4, skip_channels=4, n_layers=3, dilation_cycle=3, **options)
    torch.nn.init.normal_(model.output[-1].weight, std=0.3)
    trained = DiffWaveScheduler(10, beta_end=0.2)
    return SashimiPipeline(model, create_scheduler(scheduler, trained.config))


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("window", [None, 0.2])
def test_a_whitening_vocoder_gives_its_result_the_envelope_of_the_mel(window: float | None) -> None:
    plain, whitening = make_pipeline(), make_pipeline(mel_whitening=True)
    mel = plain.mel(0.1 * torch.randn(2, 700, generator=seeded()))  # 44 frames of 16 samples
    call = {"mel": mel, "window_in_s": window, "num_inference_steps": 3, "output_type": "pt"}
    white, found = (torch.as_tensor(pipe(generator=seeded(), **call).audios) for pipe in (plain, whitening))
    assert found.shape == white.shape
    length = white.shape[-1]
    expected = MelEnvelope(log_mel(plain.model.config)).color(white, mel)
    # The plain result lacks what was generated beyond its end.
    torch.testing.assert_close(found[..., : length - 64], expected[..., : length - 64], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("whitening", [False, True])
def test_a_strength_begins_with_griffin_lim(whitening: bool) -> None:
    pipe = make_pipeline(mel_whitening=whitening, waveform_std=1.0 if whitening else 0.1)
    mel = pipe.mel(0.1 * torch.randn(2, 640, generator=seeded()))
    start = griffin_lim(log_mel(pipe.model.config), mel).numpy()
    near, far, noise = (
        pipe(mel=mel, generator=seeded(), **options).audios
        for options in ({"strength": 0.1}, {"strength": 1}, {"strength": None})
    )
    assert near.shape == start.shape
    inner = (..., slice(64, -96))  # the last frames are the last one repeated
    assert np.corrcoef(near[inner].ravel(), start[inner].ravel())[0, 1] > 0.95
    assert abs(np.corrcoef(far[inner].ravel(), start[inner].ravel())[0, 1]) < 0.2
    np.testing.assert_array_equal(far, noise)
    twice = pipe(mel=mel, strength=0.1, num_waveforms_per_prompt=2, generator=seeded()).audios
    assert np.corrcoef(twice[1][..., 64:-96].ravel(), start[0][..., 64:-96].ravel())[0, 1] > 0.95


@pytest.mark.parametrize("length", [1, 64, 255, 256, 257, 1000, 4001])
@pytest.mark.parametrize("sashimi", [False, True])
def test_windows_cover_the_waveform(length: int, sashimi: bool) -> None:
    model = make_pipeline(sashimi=sashimi).model
    unit = 48 if sashimi else 16
    windows = plan_windows(model, length, 0.5)
    assert windows.window % unit == windows.overlap % unit == 0
    assert windows.window <= 512
    assert length <= windows.length
    assert windows.starts == [number * (windows.window - windows.overlap) for number in range(windows.count)]
    assert windows.starts[-1] + windows.window == windows.length
    if windows.count > 1:
        assert windows.overlap == 240 if sashimi else 256  # 250 ms in whole frames, at most half of a window
        assert windows.length - length < unit * windows.count
    else:
        assert (windows.overlap, windows.length) == (0, -(-length // unit) * unit)


def test_the_longest_window_follows_from_the_network_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_pipeline().model
    per_sample = sampling_memory(model.config, 1, 1)
    monkeypatch.setattr(vocoding, "WINDOW_BYTES", 800 * per_sample)
    assert plan_windows(model, 800).count == 1
    assert plan_windows(model, 801).count == 2
    monkeypatch.setattr(vocoding, "WINDOW_BYTES", 1)
    assert plan_windows(model, 64) == Windows(64, 64)  # the training length
    assert plan_windows(model, 100).count > 1


@pytest.mark.parametrize("scheduler", ["diffwave", "diffwave-fast", "ddim", "dpmsolver++", "heun"])
def test_a_network_with_a_short_context_gives_the_same_in_windows(scheduler: str) -> None:
    """The WaveNet looks at 7 samples on either side, and the mel at two frames: only seams could differ."""
    pipe = make_pipeline(scheduler)
    length = plan_windows(pipe.model, 1500, 0.5).length  # so that both draw the same noise
    mel = pipe.mel(0.1 * torch.randn(length, generator=seeded()))
    whole = vocode(pipe, mel, length, generator=seeded(), window_in_s=4.0)
    assert whole.shape == (length,)
    for windows in (1, 3):
        parts = vocode(pipe, mel, length, generator=seeded(), window_in_s=0.5, windows_per_batch=windows)
        close = np.isclose(parts, whole, atol=1e-4)
        assert close.mean() > 0.75, "away from the edges of windows, both are the same"
        assert np.abs(parts - whole).max() < 0.2 * whole.std(), "in the overlaps, the edge of a window has no context"
    other = vocode(pipe, mel, length, generator=torch.Generator().manual_seed(1), window_in_s=4.0)
    assert np.abs(other - whole).max() > whole.std()


def test_windows_do_not_need_the_memory_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = make_pipeline()
    lengths = []
    forward = pipe.model.forward

    def recorded(sample: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        lengths.append(tuple(sample.shape))
        return forward(sample, *arguments, **options)

    monkeypatch.setattr(pipe.model, "forward", recorded)
    vocode(pipe, torch.zeros(5, 200), window_in_s=0.5, windows_per_batch=2, num_inference_steps=1)
    windows = plan_windows(pipe.model, 3200, 0.5)
    assert lengths == [(min(2, windows.count - done), 1, windows.window) for done in range(0, windows.count, 2)]


def test_windows_are_faded_into_each_other() -> None:
    """Linear weights in the overlaps, all windows in one step of the scheduler."""
    pipe = make_pipeline("ddim")
    windows = plan_windows(pipe.model, 1500, 0.5)
    mel = pipe.mel(0.1 * torch.randn(windows.length, generator=seeded()))[..., : windows.length // 16]
    found = pipe(mel=mel, window_in_s=0.5, num_inference_steps=5, generator=seeded(), output_type="pt").audios

    ramp = (torch.arange(windows.overlap) + 0.5) / windows.overlap
    size, (seed,) = windows.window, sample_seeds(seeded(), 1)
    latents = torch.randn(1, 1, windows.length, generator=torch.Generator().manual_seed(seed))
    pipe.scheduler.set_timesteps(5)
    for timestep in pipe.scheduler.timesteps:
        prediction = torch.zeros_like(latents)
        for number, start in enumerate(windows.starts):
            weight = torch.ones(size)
            if number > 0:
                weight[: windows.overlap] = ramp
            if number < windows.count - 1:
                weight[-windows.overlap :] = ramp.flip(0)
            own_mel = mel[..., start // 16 : (start + size) // 16]
            with torch.no_grad():
                own = pipe.model(latents[..., start : start + size], timestep[None], mel=own_mel).sample
            prediction[..., start : start + size] += weight * own
        latents = pipe.scheduler.step(prediction, timestep, latents).prev_sample
    expected = latents * pipe.model.config.waveform_std
    torch.testing.assert_close(found, expected, atol=1e-5 * float(expected.std()), rtol=1e-5)


def test_a_batch_of_mels_is_the_same_as_each_alone() -> None:
    pipe = make_pipeline(sashimi=True, num_classes=3)
    torch.nn.init.normal_(pipe.model.class_embedding.weight)
    mels = torch.stack([pipe.mel(0.1 * torch.randn(1500, generator=seeded()) * scale)[0] for scale in (1, 0.01)])
    options = {"window_in_s": 0.5, "overlap_in_s": 0.1, "guidance_scale": 2.0}
    generators = [torch.Generator().manual_seed(7) for _ in range(2)]
    both = pipe(mel=mels, class_labels=[0, 2], generator=generators, windows_per_batch=3, **options).audios
    assert both.shape == (2, 1, mels.shape[-1] * 16)
    for row, label in enumerate((0, 2)):
        generator = [torch.Generator().manual_seed(7)]
        alone = pipe(mel=mels[row], class_labels=label, generator=generator, windows_per_batch=1, **options).audios
        np.testing.assert_allclose(both[row], alone[0], atol=1e-5 * both.std(), rtol=1e-4)
    assert np.abs(both[0] - both[1]).max() > 0.1 * both.std()


def test_a_recording_gets_the_mel_of_every_window() -> None:
    pipe, recordings = make_pipeline(num_classes=3), []

    def record(*steps: Any) -> list[Any]:
        recordings.append(steps)
        return list(steps)

    graph = SashimiPipeline(pipe.model, pipe.scheduler)
    graph._graphs = PredictionGraphs(record, device_type="cpu")
    mels = torch.randn(2, 5, 100, generator=seeded())
    for mel in (mels, mels - 1):
        options = {"mel": mel, "class_labels": [0, 1], "guidance_scale": 2.0, "window_in_s": 0.5}
        expected = pipe(**options, windows_per_batch=2, generator=seeded()).audios
        found = graph(**options, windows_per_batch=2, generator=seeded()).audios
        np.testing.assert_array_equal(found, expected)
    assert len(recordings) == 1


def test_labels_and_guidance_reach_every_window() -> None:
    pipe = make_pipeline(num_classes=3, num_speakers=2)
    for embedding in (pipe.model.class_embedding, pipe.model.speaker_embedding):
        torch.nn.init.normal_(embedding.weight)
    mel = torch.zeros(5, plan_windows(pipe.model, 900, 0.5).length // 16)
    labels = {"class_labels": 1, "speaker_labels": 0, "guidance_scale": 3.0}
    whole, parts = (
        vocode(pipe, mel, generator=seeded(), window_in_s=window, windows_per_batch=4, **labels)
        for window in (4.0, 0.5)
    )
    assert np.isclose(parts, whole, atol=1e-4).mean() > 0.6
    other = vocode(pipe, mel, generator=seeded(), window_in_s=0.5, **{**labels, "class_labels": 2})
    assert np.isclose(parts, other, atol=1e-4).mean() < 0.1


@pytest.mark.parametrize("padding", ["center", "hop"])
@pytest.mark.parametrize("length", [1, 20, 160, 161, 175, 1999])
def test_a_resynthesis_has_the_length_of_the_recording(length: int, padding: str) -> None:
    pipe = make_pipeline(mel_settings={**SETTINGS, "padding": padding})
    audio = 0.1 * np.random.default_rng(0).standard_normal(length)
    assert resynthesize(pipe, audio, num_inference_steps=1, window_in_s=0.5).shape == (length,)
    assert resynthesize(pipe, audio, 2000, num_inference_steps=1).shape == (-(-length // 2),)


def test_a_resynthesis_is_the_waveform_of_its_mel() -> None:
    pipe = make_pipeline()
    audio = 0.1 * torch.randn(160, generator=seeded())
    expected = pipe(mel=pipe.mel(audio)[..., :10], generator=seeded()).audios[0, 0]
    np.testing.assert_array_equal(resynthesize(pipe, audio, generator=seeded()), expected)


@pytest.mark.parametrize(
    ("audio", "rate", "message"),
    [
        (np.full(300, 9000, dtype=np.int16), 2000, "audio is numbers of int16: .* divide 16-bit integers by 32768"),
        ([0.1, 0.2], None, "audio is .0.1, 0.2.: expected a tensor or an array of floating-point numbers"),
        (np.zeros(0), None, r"audio has shape \(0,\): expected one recording"),
        (np.full(300, 0.1), 1000.5, "sample_rate is 1000.5: expected a whole number of Hz"),
        (np.full(300, 0.1), float("nan"), "sample_rate is nan: expected a whole number of Hz"),
        (np.full(300, np.nan), 2000, "values that are not finite"),
    ],
)
def test_recordings_that_are_none(audio: Any, rate: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        resynthesize(make_pipeline(), audio, rate)


def test_a_recording_with_gradients_and_of_another_rate() -> None:
    audio = (0.1 * torch.randn(300)).requires_grad_()
    options: dict[str, Any] = {"num_inference_steps": 2}
    found = resynthesize(make_pipeline(), audio, 2000, generator=seeded(), **options)
    expected = resynthesize(make_pipeline(), audio.detach().double().numpy(), 2000, generator=seeded(), **options)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("length", "message"), [(0, "at least 1"), (-1, "at least 1"), (1.5, "whole"), (161, "160")])
def test_lengths_that_a_mel_does_not_have(length: Any, message: str) -> None:
    with pytest.raises(UserError, match=f"length is {length}.* expected .*{message}"):
        vocode(make_pipeline(), torch.zeros(5, 10), length)


@pytest.mark.parametrize("option", [{"output_type": "pt"}, {"return_dict": False}, {"num_waveforms_per_prompt": 2}])
def test_the_result_is_always_one_array(option: Any) -> None:
    (name,) = option
    with pytest.raises(UserError, match=f"{name} cannot be given: the result is one array"):
        resynthesize(make_pipeline(), np.full(300, 0.1), **option)


def test_wrong_arguments() -> None:
    pipe = make_pipeline()
    for seconds in (0, -1.0, float("nan"), "1", True):
        with pytest.raises(UserError, match=r"window_in_s is .* expected a number of seconds above 0"):
            vocode(pipe, torch.zeros(5, 9), window_in_s=seconds)
    mel = torch.zeros(5, 9)
    for options, message in (
        ({"window_in_s": 0}, "window_in_s is 0: expected a number of seconds above 0"),
        ({"overlap_in_s": 0.1}, "overlap_in_s was given without window_in_s"),
        ({"window_in_s": 0.3, "overlap_in_s": 0.3}, "expected an overlap that is shorter than the window"),
        ({"window_in_s": 0.3, "audio_length_in_s": 1.0}, "audio_length_in_s asks for 1000 samples, the mel for 144"),
        ({"window_in_s": 0.3, "windows_per_batch": 0}, "windows_per_batch is 0, expected at least 1"),
        ({"strength": 0}, "strength is 0: expected a number above 0, up to 1"),
        ({"strength": 0.5, "mask": torch.ones(144)}, "mask was given without audio"),
        ({"strength": 0.5, "audio": torch.ones(144)}, "this model is a vocoder, which is given a mel"),
        ({"strength": 0.5, "jumps": 2}, "jumps was given without a mask"),
    ):
        with pytest.raises(UserError, match=message):
            pipe(mel=mel, **options)
    short = make_pipeline(mel_settings={"n_fft": 16, "f_max": 500.0})
    with pytest.raises(UserError, match=r"at least two hops \(32 samples\), got 16: leave strength out"):
        short(mel=mel, strength=0.5)
    with pytest.raises(UserError, match="mel has 2 spectrograms: expected one"):
        vocode(pipe, torch.zeros(2, 5, 9))
    with pytest.raises(UserError, match=r"audio has shape \(1, 300\): expected one recording"):
        resynthesize(pipe, np.zeros((1, 300)))
    with pytest.raises(UserError, match="not a vocoder"):
        resynthesize(make_pipeline(mel_channels=None, mel_settings=None), np.zeros(300))
